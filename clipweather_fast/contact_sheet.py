"""Contact sheets: rows of small pictures with headings, in one PNG file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from clipweather_fast.restore.aside import written_aside

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["contact_sheet"]

#: Pixels between pictures, and of the headings' text.
GAP, TEXT = 6, 14
PAPER, INK = (24, 24, 24), (235, 235, 235)


def contact_sheet(
    rows: Sequence[Sequence[Tensor]],
    headings: Sequence[str],
    path: str | os.PathLike[str],
    *,
    side: int = 320,
    captions: Sequence[str] | None = None,
) -> None:
    """Writes rows of pictures as one PNG (or .jpg) file, which appears whole or not at all.

    Args:
        rows: each a few pictures (3, H, W) in [0, 1], of any sizes, floating dtypes and devices.
            Values outside and NaN are drawn as the nearest value in range and as 0.
        headings: one per column, above it.
        path: the file to write; its folder must exist.
        side: a picture's longer side is made at most this long; smaller pictures stay as they are.
        captions: one per row, below it.

    Raises:
        ValueError: a row has more pictures than there are headings, there is no picture, a picture
            is not (3, H, W), or the number of captions is not that of the rows.
        OSError: the file cannot be written.
    """
    from PIL import Image, ImageDraw, ImageFont

    if not any(rows):
        raise ValueError("contact_sheet: there is no picture")
    if captions is not None and len(captions) != len(rows):
        raise ValueError(
            f"contact_sheet: captions must be {len(rows)}, one per row, got {len(captions)}"
        )
    for row in rows:
        if len(row) > len(headings):
            raise ValueError(
                f"contact_sheet: a row of {len(row)} pictures needs as many headings, "
                f"got {len(headings)}"
            )
    small = [[_small(picture, side) for picture in row] for row in rows]
    widths = [
        max((row[i].width for row in small if i < len(row)), default=0)
        for i in range(len(headings))
    ]
    heights = [max((picture.height for picture in row), default=0) for row in small]
    line = TEXT + GAP
    below = line if captions is not None else 0
    sheet = Image.new(
        "RGB",
        (
            GAP + sum(width + GAP for width in widths),
            GAP + line + sum(height + GAP + below for height in heights),
        ),
        PAPER,
    )
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(TEXT)
    lefts = [GAP + sum(widths[:i]) + i * GAP for i in range(len(widths))]
    for left, heading in zip(lefts, headings, strict=True):
        draw.text((left, GAP), heading, INK, font)
    top = GAP + line
    for number, (pictures, height) in enumerate(zip(small, heights, strict=True)):
        for left, picture in zip(lefts, pictures, strict=False):
            sheet.paste(picture, (left, top))
        top += height + GAP
        if captions is not None:
            draw.text((GAP, top), captions[number], INK, font)
            top += below
    small_file = os.fspath(path).lower().endswith((".jpg", ".jpeg"))
    with written_aside(path) as file:
        if small_file:
            sheet.save(file, "JPEG", quality=90, subsampling=0)
        else:
            sheet.save(file, "PNG")


def _small(picture: Tensor, side: int) -> Image:
    """As an image of Pillow's whose longer side is at most ``side``."""
    from PIL import Image

    if picture.ndim != 3 or picture.shape[0] != 3 or picture.numel() == 0:
        raise ValueError(f"contact_sheet: a picture must be (3, H, W), got {tuple(picture.shape)}")
    values = picture.detach().to("cpu", torch.float32).nan_to_num(nan=0.0).clamp(0, 1)[None]
    height, width = picture.shape[1:]
    if max(height, width) > side:
        ratio = side / max(height, width)
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        values = functional.interpolate(values, size=size, mode="bilinear", antialias=True)
    levels = (values[0] * 255).round().to(torch.uint8).permute(1, 2, 0).contiguous()
    return Image.fromarray(levels.numpy())
