"""The command ``clipweather``: one file per command. Typer and rich are imported here only."""

from clipweather_fast.cli.application import app, main

__all__ = ["app", "main"]
