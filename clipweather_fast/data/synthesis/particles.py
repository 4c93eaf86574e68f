"""Particles that are drawn into a picture: each a small patch of values, added where they belong.

The patches of all particles of all samples are added in one call, and a particle that is not there
adds zeros, so that a sample's pixels do not depend on what else is in its batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from clipweather_fast.data.synthesis.random_numbers import uniform

__all__ = ["Canvas", "column", "counts", "scattered"]

#: Values of patches held at once; bounds the memory of large pictures.
MOST_VALUES = 1 << 22


class Canvas:
    """Sums of particles over N pictures, with a margin so that no patch needs clipping.

    Args:
        shape: (N, H, W).
        margin: pixels around each picture; every patch must lie within them.
        planes: how many quantities are summed.
    """

    def __init__(
        self, shape: tuple[int, int, int], margin: int, planes: int, device: torch.device
    ) -> None:
        self.number, self.height, self.width = shape
        self.margin = margin
        self._wide = self.width + 2 * margin
        size = (self.height + 2 * margin) * self._wide
        starts = torch.arange(self.number, device=device) * size + margin * (self._wide + 1)
        self._starts = starts[:, None]
        self._sums = [torch.zeros(self.number * size, device=device) for _ in range(planes)]

    def places(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The places of pixels (N, K) by row and column, int64."""
        return self._starts + rows * self._wide + columns

    def offsets(self, rows: Tensor, columns: Tensor) -> Tensor:
        """What to add to a place to get to other rows and columns."""
        return rows * self._wide + columns

    def add(self, places: Tensor, *values: Tensor) -> None:
        """Adds values at places; one tensor per plane, each of the shape of ``places``."""
        flat = places.reshape(-1)
        for sums, value in zip(self._sums, values, strict=True):
            sums.index_add_(0, flat, value.reshape(-1))

    def planes(self) -> list[Tensor]:
        """The sums without margins, each (N, 1, H, W)."""
        m = self.margin
        tall = self.height + 2 * m
        maps = [sums.view(self.number, 1, tall, self._wide) for sums in self._sums]
        return [x[:, :, m : m + self.height, m : m + self.width] for x in maps]


def counts(densities: Sequence[float], areas: Sequence[float]) -> list[int]:
    """How many particles there are: densities per 10,000 pixels, areas in pixels."""
    return [round(d * a * 1e-4) for d, a in zip(densities, areas, strict=True)]


def column(values: Sequence[float], device: torch.device) -> Tensor:
    """One number per sample as float32 (N, 1)."""
    return torch.tensor(values, dtype=torch.float32).to(device)[:, None]


def scattered(
    keys: Sequence[int],
    numbers: Sequence[int],
    channels: int,
    patch: int,
    device: torch.device,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Random numbers for the particles of N samples, in portions that fit into memory.

    Args:
        keys: one per sample.
        numbers: how many particles each sample has.
        channels: random numbers per particle.
        patch: values per particle's patch.

    Yields:
        (channels, N, K) numbers in [0, 1), and (N, K) 1.0 where a particle exists, else 0.0.
    """
    most = max(numbers, default=0)
    if most == 0:
        return
    drawn = uniform(keys, channels, most, device)
    exists = torch.arange(most, device=device) < torch.tensor(numbers).to(device)[:, None]
    step = max(1, MOST_VALUES // max(1, patch * len(keys)))
    for begin in range(0, most, step):
        end = begin + step
        yield drawn[:, :, begin:end], exists[:, begin:end].to(torch.float32)
