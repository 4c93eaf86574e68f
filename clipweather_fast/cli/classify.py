"""``clipweather classify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer

from clipweather_fast.cli import _options as options
from clipweather_fast.cli._progress import shown

__all__ = ["classify"]


def classify(
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="IN...", help="Pictures, folders and patterns.", show_default=False),
    ],
    model: options.ModelOption = options.DEFAULT_MODEL,
    text: Annotated[
        Path | None,
        typer.Option(
            exists=True,
            dir_okay=False,
            metavar="FILE",
            help="CLIP's features of the weathers, as TextFeatures.save writes them, for a network "
            "whose checkpoint has none.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object per line instead of text.")
    ] = False,
    device: options.DeviceOption = "auto",
    gpu: options.GpuOption = None,
    threads: options.ThreadsOption = None,
) -> None:
    """Say which weather pictures were taken in, with probabilities.

    A picture that cannot be read is named and the rest go on; then the exit code is 1.
    """
    from clipweather_fast.clip import TextFeatures, WeatherClassifier
    from clipweather_fast.restore.jobs import InputError, pictures
    from clipweather_fast.restore.pipeline import in_words

    try:
        paths = pictures(inputs)
    except InputError as error:
        raise typer.BadParameter(shown(error), param_hint="'IN...'") from None
    restorer = options.opened(
        model,
        device=device,
        gpu=gpu,
        dtype=options.Dtype.float32,
        fp32=False,
        tile="auto",
        tile_overlap=32,
        threads=threads,
    )
    if text is not None:
        try:
            restorer.classifier = WeatherClassifier(TextFeatures.load(text))
        except ValueError as error:
            raise typer.BadParameter(shown(error), param_hint="'--text'") from None
    failed = False
    for path in paths:
        try:
            found = restorer.classify(path)
        except (torch.OutOfMemoryError, ArithmeticError, MemoryError, OSError, ValueError) as error:
            failed = True
            typer.echo(f"{shown(path)}: {shown(in_words(error, path))}", err=True)
            continue
        except RuntimeError as error:  # of the network, so the same for every picture
            words = f"{error}; for a network without them pass --text FILE" if not text else error
            raise typer.BadParameter(str(words), param_hint="'--model' / '-n'") from None
        if as_json:
            typer.echo(json.dumps({"input": str(path), "weather": found}))
        else:
            shares = ", ".join(f"{word} {share:.1%}" for word, share in found.items())
            typer.echo(f"{shown(path)}: {shares}")
    raise typer.Exit(1 if failed else 0)
