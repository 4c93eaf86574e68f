"""Particles that are drawn into a picture: each a small patch of values, added where they belong.

The patches of all particles of all samples are added in one call, and a particle that is not there
adds zeros, so that a sample's pixels do not depend on what else is in its batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from clipweather_fast.data.synthesis.random_numbers import uniform

__all__ = [
    "Canvas",
    "Number",
    "Portion",
    "RoundLayer",
    "column",
    "counts",
    "drawn_particles",
    "portions",
    "radii",
    "scattered",
]

#: A number, or one per particle.
Number = TypeVar("Number", float, Tensor)

#: Values of patches held at once, on the processor and on a GPU: a bound of the memory.
MOST_VALUES, MOST_VALUES_GPU = 1 << 22, 1 << 25


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
        self._sums = [
            torch.zeros(self.number * size, dtype=torch.float32, device=device)
            for _ in range(planes)
        ]

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


def portions(drawn: Tensor, exists: Tensor, patch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Particles in portions whose patches fit into memory.

    Args:
        drawn: (channels, N, K) random numbers.
        exists: (N, K), which of them belong to a particle.
        patch: values per particle's patch.

    Yields:
        The numbers of a portion, and (N, K') 1.0 where a particle exists, else 0.0.
    """
    values = MOST_VALUES if drawn.device.type == "cpu" else MOST_VALUES_GPU
    step = max(1, values // max(1, patch * len(exists)))
    for begin in range(0, exists.shape[1], step):
        chosen = slice(begin, begin + step)
        yield drawn[:, :, chosen], exists[:, chosen].to(torch.float32)


def drawn_particles(
    keys: Sequence[int], numbers: Sequence[int], channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Random numbers (channels, N, K) for particles of N samples, and (N, K) which exist."""
    most = max(numbers, default=0)
    there = torch.arange(most, device=device) < torch.tensor(numbers).to(device)[:, None]
    return uniform(keys, channels, most, device), there


class RoundLayer(Protocol):
    """Particles whose patches are squares around their middles."""

    @property
    def density(self) -> float:
        """Particles per 10,000 pixels."""

    @property
    def smallest(self) -> float:
        """Least radius, in pixels."""

    @property
    def largest(self) -> float:
        """Largest radius, in pixels."""

    def reach(self, radius: Number) -> Number:
        """Pixels from the middle of a particle of this radius beyond which it has no effect."""


@dataclass(frozen=True)
class Portion:
    """Some of a layer's particles.

    Attributes:
        drawn: (channels, N, K) numbers in [0, 1); the first gives the radius.
        exists: (N, K) 1.0 where there is a particle, else 0.0.
        y, x: (N, K), the middles, in pixels.
        dy, dx: (N, K, P, 1) and (N, K, 1, P), distances of a patch's rows and columns from it.
        places: (N, K, P, P), where the patches lie on the canvas.
    """

    drawn: Tensor
    exists: Tensor
    y: Tensor
    x: Tensor
    dy: Tensor
    dx: Tensor
    places: Tensor


def scattered(
    clean: Tensor, keys: Sequence[int], layers: Sequence[RoundLayer], channels: int, planes: int
) -> tuple[Canvas, Iterator[Portion]] | None:
    """A canvas for the round particles of N samples, and the particles; None if there are none.

    Args:
        clean: (N, 3, H, W), the pictures.
        keys: N, of the random numbers.
        layers: N.
        channels: random numbers that a particle needs besides its place.
        planes: of the canvas.
    """
    number, _, height, width = clean.shape
    margins = [float(math.ceil(layer.reach(layer.largest))) for layer in layers]
    areas = [(height + 2 * m) * (width + 2 * m) for m in margins]
    numbers = counts([layer.density for layer in layers], areas)
    drawn, exists = drawn_particles(keys, numbers, channels + 2, clean.device)
    margin = column(margins, clean.device)
    y = drawn[0] * (height + 2 * margin) - margin
    x = drawn[1] * (width + 2 * margin) - margin
    half = round(max(margins))
    if number == 1 and clean.device.type == "cpu":
        # What does not touch the picture is left out, and patches are no larger than needed. On a
        # GPU that would wait for it.
        reach = layers[0].reach(radii(layers, drawn[2]))
        touches = (y > -1 - reach) & (y < height + reach) & (x > -1 - reach) & (x < width + reach)
        seen = touches[0].nonzero()[:, 0]
        drawn, exists, y, x = drawn[:, :, seen], exists[:, seen], y[:, seen], x[:, seen]
        half = math.ceil(float(reach[0, seen].max())) if len(seen) else 0
    if exists.shape[1] == 0:
        return None
    canvas = Canvas((number, height, width), 2 * half + 1, planes, clean.device)
    return canvas, _portions(canvas, torch.cat([y[None], x[None], drawn[2:]]), exists, half, planes)


def _portions(
    canvas: Canvas, drawn: Tensor, exists: Tensor, half: int, planes: int
) -> Iterator[Portion]:
    grid = torch.arange(-half, half + 1, device=drawn.device)
    offsets = canvas.offsets(grid[:, None], grid)
    for some, there in portions(drawn, exists, planes * len(grid) ** 2):
        y, x = some[0], some[1]
        row, col = y.floor(), x.floor()
        yield Portion(
            drawn=some[2:],
            exists=there,
            y=y,
            x=x,
            dy=(grid - (y - row)[..., None])[..., :, None],
            dx=(grid - (x - col)[..., None])[..., None, :],
            places=canvas.places(row.long(), col.long())[..., None, None] + offsets,
        )


def radii(layers: Sequence[RoundLayer], share: Tensor) -> Tensor:
    """Radii (N, K) for numbers in [0, 1): small particles are more common than large ones."""
    smallest = column([layer.smallest for layer in layers], share.device)
    largest = column([layer.largest for layer in layers], share.device)
    return smallest + (largest - smallest) * share.square()
