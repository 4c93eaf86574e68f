"""Tiles that see the whole picture.

All tiles of a picture go through the network in step: a tile pauses where a layer asks for keys
and values, until every tile has given its own, and goes on with all of them. So attention computes
what it would compute for the whole picture. Between blocks tiles pause too, and each gets the
features of its rims from the neighbours that these lie further inside of: so layers with a short
reach see no further than there is. In memory are one tile at work, and of the paused ones what
waits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from contextvars import copy_context
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor

from clipweather_fast.models._padding import padded_length
from clipweather_fast.modules._joint import in_step
from clipweather_fast.restore.tiles import Span

__all__ = ["MOST_PIXELS", "JointTiles"]

#: Keys of a larger picture are averaged until they are as few as this one's: attention costs the
#: product of queries and keys, and with more it takes longer than everything else.
MOST_PIXELS = 2048**2


@dataclass(frozen=True)
class _Place:
    """A tile's spans, and its padded size."""

    row: Span
    column: Span
    height: int
    width: int

    def own(self, height: int, width: int) -> tuple[slice, slice]:
        """The part of its grid (height, width) that no other tile of the picture gives."""
        return _own(self.row, height, self.height), _own(self.column, width, self.width)

    def strides(self, height: int, width: int) -> tuple[int, int] | None:
        """Those of its grid (height, width); None: its places do not fill the tile."""
        if self.height % height or self.width % width:
            return None
        return self.height // height, self.width // width


class JointTiles:
    """Runs a picture's tiles in step.

    Args:
        rows, columns: spans of the picture's axes.
        step: tiles are padded to its multiples.
        least: and to this side.
        network: rows and columns to the restored tile (1, 3, h, w).
        around: what each turn of a tile runs in: autocast, for one. What ``network`` itself sets
            of a thread's state, but for autocast, must be unset where a layer asks for keys.
        rims: whether tiles get each other's rims: where what layers show is the picture, upright.
    """

    def __init__(
        self,
        rows: Sequence[Span],
        columns: Sequence[Span],
        step: int,
        least: int,
        network: Callable[[Span, Span], Tensor],
        around: Callable[[], AbstractContextManager[object]],
        *,
        rims: bool,
    ) -> None:
        def padded(span: Span) -> int:
            return padded_length(span.end - span.begin, step, least)

        self._places = [_Place(r, c, padded(r), padded(c)) for r in rows for c in columns]
        self._per_row = len(columns)
        pixels = rows[-1].end * columns[-1].end
        self._thinned = math.ceil(math.sqrt(pixels / MOST_PIXELS))
        self._network, self._around, self._step = network, around, step
        self._gives_rims = rims
        self._turn = 0
        self._layer: object | None = None
        self._given: list[Tensor] = []
        self._features: list[tuple[Tensor, ...]] = []

    def results(self) -> Iterator[Tensor]:
        """The restored tiles, row by row; the last layers of each run when it is asked for.

        Raises:
            RuntimeError: if tiles do not ask the same layers in the same order.
        """
        tiles = [greenlet(self._tile) for _ in self._places]
        for tile in tiles:
            tile.gr_context = copy_context()  # else it begins with none
        ended = False
        try:
            while not ended:
                for number, tile in enumerate(tiles):
                    self._turn = number
                    with self._around(), in_step(self):
                        result = tile.switch(number)
                    if number and ended != tile.dead:
                        raise RuntimeError("tiles of one picture took different ways")
                    ended = tile.dead
                    if ended:
                        yield result
                        del result
        finally:
            for tile in tiles:
                if tile:  # begun and not ended: its frames hold tensors
                    with self._around():  # what it sets back of autocast ends with this
                        tile.throw(GreenletExit)

    def keys(self, layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
        """See :class:`clipweather_fast.modules._joint.Joint`."""
        if self._turn == 0:
            self._given = []
        given = self._given
        rows, columns = self._places[self._turn].own(height, width)
        grid = tokens.unflatten(1, (height, width))[:, rows, columns]
        given.append(self._reduced(grid).flatten(1, 2))
        device = tokens.device.type
        del tokens, grid
        self._pause(layer, device)
        if len(given) > 1:  # the first to go on joins them for all
            given[:] = [torch.cat(given, dim=1)]
        return given[0]

    def rims(self, layer: object, images: tuple[Tensor, ...]) -> None:
        """See :class:`clipweather_fast.modules._joint.Joint`."""
        if not self._gives_rims:
            return
        self._features.append(images)
        if self._turn == len(self._places) - 1:
            self._exchange()
            self._features.clear()
        self._pause(layer, images[0].device.type)

    def _pause(self, layer: object, device: str) -> None:
        """Lets the other tiles come as far as this one is."""
        if self._turn == 0:
            self._layer = layer
        elif layer is not self._layer:
            raise RuntimeError("tiles of one picture took different ways")
        # Autocast belongs to the thread: others have set it for themselves meanwhile.
        enabled, dtype = torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
        driver = getcurrent().parent
        assert driver is not None
        driver.switch()
        torch.set_autocast_enabled(device, enabled)
        torch.set_autocast_dtype(device, dtype)

    def _exchange(self) -> None:
        """Writes over each tile's rims what the tiles have that own them.

        What is read is owned and what is written is not, so the order does not matter.
        """
        grids = [(images[0].shape[2], images[0].shape[3]) for images in self._features]
        strides = {place.strides(*grid) for place, grid in zip(self._places, grids, strict=True)}
        common = strides.pop()
        # Tiles begin at multiples of the step: of any other stride a place of theirs is none of the
        # picture's.
        if strides or common is None or any(self._step % stride for stride in common):
            return
        corners = [(p.row.begin // common[0], p.column.begin // common[1]) for p in self._places]
        owned = [place.own(*grid) for place, grid in zip(self._places, grids, strict=True)]
        for number, (images, grid) in enumerate(zip(self._features, grids, strict=True)):
            for other, rows, columns in self._rims(number, grid, owned[number]):
                down, right = (a - b for a, b in zip(corners[number], corners[other], strict=True))
                for image, source in zip(images, self._features[other], strict=True):
                    image[:, :, rows, columns] = source[
                        :,
                        :,
                        rows.start + down : rows.stop + down,
                        columns.start + right : columns.stop + right,
                    ]

    def _rims(
        self, number: int, grid: tuple[int, int], own: tuple[slice, slice]
    ) -> Iterator[tuple[int, slice, slice]]:
        """What tiles around a tile own of its grid: their numbers, rows and columns."""
        parts = [
            [(-1, slice(0, mine.start)), (0, mine), (1, slice(mine.stop, count))]
            for mine, count in zip(own, grid, strict=True)
        ]
        for down, rows in parts[0]:
            for right, columns in parts[1]:
                nonempty = rows.start < rows.stop and columns.start < columns.stop
                if (down or right) and nonempty:
                    yield number + down * self._per_row + right, rows, columns

    def _tile(self, number: int) -> Tensor:
        place = self._places[number]
        return self._network(place.row, place.column)

    def _reduced(self, grid: Tensor) -> Tensor:
        """A grid (1, h, w, C) in memory of its own, averaged where there are too many keys."""
        if self._thinned == 1 or grid.numel() == 0:
            return grid.clone(memory_format=torch.contiguous_format)
        window = min(self._thinned, grid.shape[1]), min(self._thinned, grid.shape[2])
        averaged = F.avg_pool2d(grid.movedim(3, 1).float(), window, ceil_mode=True)
        return averaged.movedim(1, 3).to(grid.dtype)


def _own(span: Span, count: int, padded: int) -> slice:
    """Of ``count`` places along a tile's axis those between the middles of its overlaps."""

    def first_from(pixel: int) -> int:
        return -(-pixel * count // padded)

    end = span.end - span.begin
    last = first_from(end - span.after + span.after // 2) if span.after else count
    return slice(first_from(span.before // 2), last)
