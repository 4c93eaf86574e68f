"""A run's log as a picture: the losses, the learning rate and the held-out measures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipweather_fast.restore.aside import written_aside

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

__all__ = ["curves"]

#: A chart's size and margins (left, top, right, bottom), in pixels.
WIDTH, HEIGHT = 640, 280
MARGINS = (70, 26, 12, 24)
COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")

#: Points by the name of their line.
Lines = dict[str, list[tuple[float, float]]]


def curves(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws a log: the loss and its parts (logarithmic), the learning rate, held-out measures.

    Args:
        records: as :func:`clipweather_fast.training.journal.read_log` gives them.
        path: of the PNG file; written aside.
    """
    from PIL import Image, ImageDraw

    losses: Lines = {}
    rates: Lines = {}
    measures: dict[str, Lines] = {}
    for record in records:
        step = float(record["step"])
        if record.get("kind") == "train":
            for name, value in {"loss": record["loss"], **record["parts"]}.items():
                losses.setdefault(name, []).append((step, value))
            rates.setdefault("learning rate", []).append((step, record["lr"]))
        elif record.get("kind") == "validation":
            for name, value in record.items():
                if name not in ("kind", "step") and isinstance(value, (int, float)):
                    # One chart per measure: psnr, psnr snow, psnr rain … share one.
                    lines = measures.setdefault(name.partition(" ")[0], {})
                    lines.setdefault(name, []).append((step, value))
    charts = [("loss", losses, True), ("learning rate", rates, False)]
    charts += [(f"held out: {name}", lines, False) for name, lines in measures.items()]
    charts = [chart for chart in charts if any(chart[1].values())]
    picture = Image.new("RGB", (WIDTH, HEIGHT * max(1, len(charts))), "white")
    pen = ImageDraw.Draw(picture)
    for i, (title, lines, logarithmic) in enumerate(charts):
        _chart(pen, i * HEIGHT, title, lines, logarithmic)
    with written_aside(path) as file:
        picture.save(file, "PNG")


def _chart(pen: ImageDraw, top: int, title: str, lines: Lines, logarithmic: bool) -> None:
    points = [
        (x, y)
        for line in lines.values()
        for x, y in line
        if math.isfinite(y) and (y > 0 or not logarithmic)
    ]
    left, above, right, below = MARGINS
    box = (left, top + above, WIDTH - right, top + HEIGHT - below)
    pen.text((left, top + 6), title, fill="black")
    pen.rectangle(box, outline="#bbbbbb")
    if not points:
        return
    xs = _span([x for x, _ in points])
    ys = _span([math.log10(y) if logarithmic else y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        y = math.log10(y) if logarithmic else y
        return (
            box[0] + (x - xs[0]) / (xs[1] - xs[0]) * (box[2] - box[0]),
            box[3] - (y - ys[0]) / (ys[1] - ys[0]) * (box[3] - box[1]),
        )

    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        value = ys[0] + share * (ys[1] - ys[0])
        y = box[3] - share * (box[3] - box[1])
        pen.line((box[0], y, box[2], y), fill="#eeeeee")
        pen.text((4, y - 6), f"{10**value if logarithmic else value:.3g}", fill="#555555")
        x = box[0] + share * (box[2] - box[0])
        words = f"{xs[0] + share * (xs[1] - xs[0]):.4g}"
        pen.text((min(x, box[2] - 40), box[3] + 5), words, fill="#555555")
    at = left + 110
    for (name, line), colour in zip(lines.items(), COLOURS * len(lines), strict=False):
        known = [place(x, y) for x, y in line if math.isfinite(y) and (y > 0 or not logarithmic)]
        if len(known) == 1:
            x, y = known[0]
            pen.ellipse((x - 2, y - 2, x + 2, y + 2), fill=colour)
        pen.line(known, fill=colour, width=2)
        pen.text((at, top + 6), name, fill=colour)
        at += 12 + round(pen.textlength(name))


def _span(values: list[float]) -> tuple[float, float]:
    """The least and the largest value, a little apart in any case."""
    low, high = min(values), max(values)
    if high - low < 1e-9 * max(1.0, abs(high)):
        apart = abs(high) / 10 or 0.5
        return low - apart, high + apart
    return low, high
