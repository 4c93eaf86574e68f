"""``clipweather data synth``."""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from clipweather_fast.cli._progress import Bar, shown

__all__ = ["synth"]


class Kind(StrEnum):
    """The weathers by name."""

    snow = "snow"
    rain = "rain"
    raindrop = "raindrop"


def synth(
    photographs: Annotated[
        list[str],
        typer.Argument(
            metavar="PHOTOS...",
            help="Clean photographs, folders (searched to the bottom) and patterns.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", metavar="OUT", help="Folder of the dataset."),
    ],
    weathers: Annotated[
        list[Kind] | None,
        typer.Option(
            "--weather",
            "-w",
            help="Make this weather; may be repeated. Without it all three.",
            show_default=False,
        ),
    ] = None,
    variations: Annotated[
        int, typer.Option(min=1, help="Pictures per photograph and weather.")
    ] = 1,
    seed: Annotated[int, typer.Option(help="The same seed gives the same pixels.")] = 0,
    strength: Annotated[
        float,
        typer.Option(min=0, max=100, help="How much snow, rain, haze and drops; 1 is usual."),
    ] = 1.0,
    longest: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="PIXELS",
            help="Scale photographs whose longer side has more pixels down to this.",
            show_default=False,
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Photographs at a time; by default one per processor."),
    ] = None,
) -> None:
    """Write pairs of photographs and the same in snow, rain with haze, and through raindrops.

    OUT gets WEATHER/input and WEATHER/gt with equal names, synthesis.json with every picture's seed
    and parameters, and contact_sheet.png. The same command goes on where it was interrupted. A
    photograph that cannot be read is named and the rest go on; then the exit code is 1.

    Example: clipweather data synth photos/ -o pairs/ --variations 4
    """
    from clipweather_fast.data.synthesis.dataset import Settings, write_dataset
    from clipweather_fast.restore.jobs import pictures

    chosen = tuple(kind.value for kind in Kind if not weathers or kind in weathers)
    settings = Settings(seed, chosen, variations, strength, longest)
    torch.set_num_threads(1)  # the threads are the workers
    try:
        with Bar(len(pictures(photographs)), "photographs", "degrading") as bar:

            def progress(failure: str | None) -> None:
                if failure is not None:
                    bar.say(shown(failure))
                bar.advance()

            report = write_dataset(
                photographs,
                output,
                settings,
                workers=workers or min(16, os.cpu_count() or 1),
                progress=progress,
            )
    except ValueError as error:
        raise typer.BadParameter(shown(error), param_hint="'PHOTOS...' / '--output'") from None
    except OSError as error:
        typer.echo(f"{shown(error.filename)}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from here", err=True)
        raise typer.Exit(130) from None
    counts = f"{report.written} pairs written, {report.kept} kept, {len(report.failed)} failed"
    typer.echo(f"{shown(output)}: {counts}", err=True)
    raise typer.Exit(1 if report.failed else 0)
