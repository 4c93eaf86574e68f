"""``clipweather env``."""

from __future__ import annotations

import typer

from clipweather_fast import installation

__all__ = ["env"]


def env() -> None:
    """Print versions, what was built, and which backends run each operator, or why not."""
    for line in installation.report():
        typer.echo(line)
