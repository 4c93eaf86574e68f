"""Cutting a picture into overlapping tiles and putting the restored ones together without a seam.

Tiles begin at multiples of the network's stride, so that a tile's patches lie where the whole
picture's do; the last tile of a row ends with the picture, and the network pads both alike. Of each
overlap the outer quarters are dropped, where a tile lacks what lies beyond its rim; in the middle
half one tile passes into the next along a raised cosine. A network that looks no further than a
quarter of the overlap therefore gives the same picture in tiles as whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

__all__ = ["Span", "restore_in_tiles", "smallest_tile", "spans"]


@dataclass(frozen=True)
class Span:
    """Where a tile lies along one axis.

    Attributes:
        begin, end: its first pixel, and the one after its last.
        before: pixels it shares with the tile before.
        after: pixels it shares with the tile after.
    """

    begin: int
    end: int
    before: int = 0
    after: int = 0


def smallest_tile(overlap: int, step: int) -> int:
    """The smallest side of a tile: no pixel may lie in three tiles of a row."""
    return max(step, 2 * _up(overlap, step))


def spans(length: int, tile: int, overlap: int, step: int) -> list[Span]:
    """Covers an axis with tiles of nearly equal size.

    Args:
        length: pixels of the axis.
        tile: largest size of a tile; it is rounded down to a multiple of ``step``, but not below
            :func:`smallest_tile`.
        overlap: pixels that neighbours share; rounded up to a multiple of ``step``.
        step: the network's stride: tiles begin at its multiples.

    Returns:
        Spans in order. All but the last have one size; neighbours share exactly the overlap.
    """
    if length <= tile:
        return [Span(0, length)]
    overlap = _up(overlap, step)
    tile = max(tile // step * step, smallest_tile(overlap, step))
    if length <= tile:
        return [Span(0, length)]
    count = math.ceil((length - overlap) / (tile - overlap))
    even = _up(math.ceil((length - overlap) / count) + overlap, step)
    tile = min(tile, max(even, smallest_tile(overlap, step)))
    begins = range(0, length - overlap, tile - overlap)
    found = [Span(b, min(b + tile, length)) for b in begins]
    shared = [0, *(a.end - b.begin for a, b in pairwise(found)), 0]
    return [
        Span(s.begin, s.end, before, after)
        for s, before, after in zip(found, shared[:-1], shared[1:], strict=True)
    ]


def restore_in_tiles(
    image: Tensor,
    out: Tensor,
    rows: list[Span],
    columns: list[Span],
    network: Callable[[Tensor], Tensor],
    store: Callable[[Tensor, Tensor], None],
) -> None:
    """Restores a picture tile by tile.

    Beside the picture and the result there is one row of tiles in memory, in float32.

    Args:
        image: (1, 3, H, W), anything that ``network`` takes slices of.
        out: (1, 3, H, W), where ``store`` puts the result.
        rows: spans of H.
        columns: spans of W.
        network: a slice of ``image`` to (1, 3, h, w) float32.
        store: writes restored rows (first argument) into a slice of ``out`` (second).
    """
    carried: Tensor | None = None
    for row in rows:
        strip: Tensor | None = None
        for column in columns:
            tile = network(image[:, :, row.begin : row.end, column.begin : column.end])
            if strip is None:
                shape = (1, row.end - row.begin, image.shape[3], 3)
                strip = torch.empty(shape, dtype=torch.float32, device=out.device)
                strip = strip.permute(0, 3, 1, 2)  # channels-last, as pictures lie in memory
            _lay(strip, tile.to(out.device), column)
        assert strip is not None
        if carried is not None:
            top = strip[:, :, : row.before]
            top.copy_(carried.lerp_(top, _ramp(row.before, top.device)[:, None]))
        ready = row.end - row.begin - row.after
        store(strip[:, :, :ready], out[:, :, row.begin : row.begin + ready])
        carried = strip[:, :, ready:].clone() if row.after else None


def _lay(strip: Tensor, tile: Tensor, column: Span) -> None:
    """Puts a tile into its row, blended with the one to its left."""
    middle = column.begin + column.before
    if column.before:
        left = strip[:, :, :, column.begin : middle]
        left.lerp_(tile[:, :, :, : column.before], _ramp(column.before, strip.device))
    strip[:, :, :, middle : column.end] = tile[:, :, :, column.before :]


def _ramp(length: int, device: torch.device) -> Tensor:
    """Weights of the later tile along an overlap: 0, half a cosine, 1."""
    quarter = length // 4
    place = torch.arange(length, dtype=torch.float32, device=device) + (0.5 - quarter)
    place /= max(length - 2 * quarter, 1)
    return 0.5 - 0.5 * torch.cos(math.pi * place.clamp(0, 1))


def _up(value: int, step: int) -> int:
    return -(-value // step) * step
