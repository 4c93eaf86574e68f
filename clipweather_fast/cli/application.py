"""The application: its commands, in the order in which ``--help`` lists them."""

from __future__ import annotations

from typing import Annotated

import typer

import clipweather_fast
from clipweather_fast.cli.bench import bench
from clipweather_fast.cli.classify import classify
from clipweather_fast.cli.data import data
from clipweather_fast.cli.demo import demo
from clipweather_fast.cli.env import env
from clipweather_fast.cli.eval import evaluate
from clipweather_fast.cli.export import export
from clipweather_fast.cli.models import models
from clipweather_fast.cli.restore import restore
from clipweather_fast.cli.synth import synth
from clipweather_fast.cli.train import train
from clipweather_fast.cli.video import video

__all__ = ["app", "main"]

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",  # paragraphs are filled, brackets are brackets
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
    """Remove snow, rain and haze from pictures, with fast PyTorch operators.

    `clipweather restore photos/ -o clear/` restores a folder. `clipweather bench` shows how fast
    this machine is, `clipweather env` what is installed and what runs where.
    """


for command in (restore, video, classify, models, export, train, env, demo, bench):
    app.command()(command)
app.command("eval")(evaluate)
data.command()(synth)
app.add_typer(data, name="data")


def main() -> None:
    """Entry point of the command."""
    app(prog_name="clipweather")
