"""A look at held-out pictures, and what a run looks like so far, as PNG files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import default_collate

from clipweather_fast.training.curves import curves
from clipweather_fast.training.feed import Samples
from clipweather_fast.training.journal import read_log
from clipweather_fast.training.task import Batch, Task

__all__ = ["Look", "draw", "look"]

#: Pictures on a contact sheet.
ROWS = 6


@dataclass(frozen=True)
class Look:
    """Means of the measures, and pictures by heading."""

    measures: dict[str, float]
    pictures: dict[str, Tensor]


def look(task: Task, samples: Samples, batch: int) -> Look:
    """What the student makes of all samples, ``batch`` at a time."""
    samples.set_epoch(0)
    measures: dict[str, list[Tensor]] = {}
    pictures: dict[str, list[Tensor]] = {}
    for first in range(0, len(samples), batch):
        indices = range(first, min(first + batch, len(samples)))
        made: Batch = default_collate([samples[i] for i in indices])
        found = task.examine(made)
        for name, values in found.measures.items():
            measures.setdefault(name, []).append(values.double().cpu())
        if first < ROWS:
            for name, tensor in found.pictures.items():
                pictures.setdefault(name, []).append(tensor.float().cpu())
    means = {name: float(torch.cat(values).nanmean()) for name, values in measures.items()}
    return Look(
        # What no picture has is left out.
        {name: value for name, value in means.items() if value == value},
        {name: torch.cat(tensors)[:ROWS] for name, tensors in pictures.items()},
    )


def draw(folder: Path, step: int, found: Look | None) -> None:
    """Writes ``curves.png``, and ``sheets/step-….png`` of what was found."""
    curves(read_log(folder / "log.jsonl"), folder / "curves.png")
    if found is None or not found.pictures:
        return
    from clipweather_fast.contact_sheet import contact_sheet

    sheets = folder / "sheets"
    sheets.mkdir(exist_ok=True)
    rows = [list(row) for row in zip(*found.pictures.values(), strict=True)]
    contact_sheet(rows, list(found.pictures), sheets / f"step-{step:09}.png")
