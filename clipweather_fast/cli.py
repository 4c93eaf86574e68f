"""The command ``clipweather``. Typer is imported here only, so that the library stays light."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import clipweather_fast
from clipweather_fast import installation

__all__ = ["main"]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"clipweather_fast {clipweather_fast.__version__}")
        raise typer.Exit


@app.callback()
def clipweather(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Fast PyTorch operators for networks that remove snow, rain and haze from pictures.

    Start with `clipweather demo`, which shows what they gain on this machine, and
    `clipweather env`, which shows what is installed and what runs where.
    """


@app.command()
def env() -> None:
    """Print versions, what was built, and which backends run each operator, or why not."""
    for line in installation.report():
        typer.echo(line)


@app.command()
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


def main() -> None:
    """Entry point of the command."""
    app(prog_name="clipweather")
