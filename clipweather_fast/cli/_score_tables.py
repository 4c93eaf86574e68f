"""The tables of `clipweather eval`: one per protocol, a row per weather."""

from __future__ import annotations

import math
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipweather_fast.evaluation import PROTOCOLS, Evaluation, Means

__all__ = ["print_tables"]

#: Columns for a table that is written to a file or a pipe.
WIDTH = 100


def print_tables(evaluation: Evaluation) -> None:
    """Prints the means to standard output, each table with its protocol."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDTH)
    for name in evaluation.protocols:
        means = evaluation.means(name)
        if not means:
            continue
        console.print(_table(name, means))
        for note in _notes(means):
            console.print(Text(note))
        console.print()


def _table(protocol: str, means: dict[str, Means]) -> Table:
    compared = any(mean.input_psnr is not None for mean in means.values())
    title = Text(f"protocol {protocol}: {PROTOCOLS[protocol].title}")
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("weather")
    columns = ["pictures", "PSNR, dB", "SSIM"]
    columns += ["input PSNR", "input SSIM", "gain, dB"] if compared else []
    for column in columns:
        table.add_column(column, justify="right")
    for group, mean in means.items():
        cells = [str(mean.pictures), f"{mean.psnr:.2f}", f"{mean.ssim:.4f}"]
        if compared:
            cells += [
                _number(mean.input_psnr, ".2f"),
                _number(mean.input_ssim, ".4f"),
                _number(mean.gain, "+.2f"),
            ]
        table.add_row(group, *cells)
    return table


def _notes(means: dict[str, Means]) -> Iterator[str]:
    """What the means leave out."""
    every = list(means.values())[-1]
    parts = (
        ("restored", every.identical, every.psnr),
        ("degraded", every.input_identical, every.input_psnr),
    )
    for what, identical, mean in parts:
        if identical:
            left = "" if mean == math.inf else "; the mean is over the others"
            yield (
                f"{identical} of {every.pictures} {what} pictures equal the truth under this "
                f"protocol: their PSNR is infinite{left}"
            )


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
