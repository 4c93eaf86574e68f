"""``clipweather classify``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer

from clipweather_fast.cli import _options as options
from clipweather_fast.cli._progress import shown

if TYPE_CHECKING:
    from clipweather_fast.restore import Restorer

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

    This takes a network that was trained with CLIP's features of the weathers (text.weight above 0
    in the configuration for `clipweather train`); the one that comes with the package was not.

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
    problem = _why_not(restorer, model, text)
    if problem is not None:
        typer.echo(f"clipweather classify: {shown(problem)}", err=True)
        raise typer.Exit(2)
    failed = False
    for path in paths:
        try:
            found = restorer.classify(path)
        except (ArithmeticError, MemoryError, OSError, RuntimeError, ValueError) as error:
            failed = True
            typer.echo(f"{shown(path)}: {shown(in_words(error, path))}", err=True)
            continue
        if as_json:
            typer.echo(json.dumps({"input": str(path), "weather": found}))
        else:
            shares = ", ".join(f"{word} {share:.1%}" for word, share in found.items())
            typer.echo(f"{shown(path)}: {shares}")
    raise typer.Exit(1 if failed else 0)


def _why_not(restorer: Restorer, model: str, text: Path | None) -> str | None:
    """Why this network names no weather, and the way out; None: it does."""
    prior = restorer.encode_prior(torch.zeros(1, 3, 32, 32))
    if prior is None:
        return (
            f"{model} cannot name the weather, because it looks for none: it has no weather prior. "
            "Name another network with --model; `clipweather models` says which have one."
        )
    if restorer.classifier is None:
        return (
            f"{model} cannot name the weather: its weights come without CLIP's features of the "
            "weathers, with which pictures are compared. Name a network that was trained with them "
            "with --model, or, if it was and they lie in another place, their file with --text."
        )
    try:
        restorer.classify(torch.zeros(1, 3, 32, 32))
    except ValueError as error:
        place = "their file" if text is None else str(text)
        return (
            f"the features of the weathers in {place} do not belong to {model} ({error}). Name "
            "with --text the file that this network was trained with."
        )
    return None
