"""``clipweather demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["demo"]


def demo(
    picture: Annotated[
        Path | None,
        typer.Argument(
            exists=True,
            dir_okay=False,
            help="A photograph; by default the one in examples/.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(min=1, help="Threads to compute with; by default PyTorch's number."),
    ] = None,
) -> None:
    """Time the fast blocks against plain PyTorch on a photograph's features (under 20 seconds)."""
    from clipweather_fast.demo import run

    try:
        typer.echo(str(run(picture, threads)))
    except (OSError, ValueError) as error:
        typer.echo(f"clipweather demo: {error}", err=True)
        raise typer.Exit(1) from None
