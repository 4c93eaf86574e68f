"""Convolutions of the frozen form by Winograd's algorithm; see csrc/common/cpu_winograd.h."""

from __future__ import annotations

from abc import ABC, abstractmethod
from enum import IntEnum

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.models._frozen_panels import in_panels, padded
from clipweather_fast.ops import _native

__all__ = ["Kind", "NativeConvolution", "Winograd"]

#: The finite points of F(m, 3).
_POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 0.625, -0.625, 1.5, -1.5)}


class Kind(IntEnum):
    """What a layer is, as the native code numbers it."""

    SAME = 0
    """3×3, padding 1."""
    UP = 1
    """Transposed 4×4, stride 2, padding 1."""
    DOWN = 2
    """3×3, stride 2, padding 1."""

    def result(self, x: Tensor, channels: int) -> Tensor:
        """Room for what a layer makes of an image (N, C, H, W), channels-last."""
        n, _, h, w = x.shape
        if self == Kind.UP:
            h, w = 2 * h, 2 * w
        elif self == Kind.DOWN:
            h, w = (h + 1) // 2, (w + 1) // 2
        layout = torch.channels_last
        return torch.empty(n, channels, h, w, dtype=x.dtype, memory_format=layout)


class NativeConvolution(ABC):
    """What the native convolutions of whole networks have in common.

    Args:
        kind: of the layer.
        out_channels: C'.
        packed: its weight as the native code reads it.
        bias: (C') or None.
    """

    def __init__(self, kind: Kind, out_channels: int, packed: Tensor, bias: Tensor | None) -> None:
        self.kind, self.out_channels, self.packed = kind, out_channels, packed
        self.bias = None if bias is None else bias.float().contiguous()
        self.native = (_native.address(self.packed), _native.address(self.bias))

    def __call__(
        self, x: Tensor, *sums: Tensor, relu: bool = False, out: Tensor | None = None
    ) -> Tensor:
        """An image (N, C, H, W), channels-last, to (N, C', H', W'), through ReLU, plus ``sums``.

        Args:
            sums: at most two of the result's shape, channels-last.
            relu: whether there is one, before the sums.
            out: the result; it may be one of the sums.
        """
        assert len(sums) <= 2
        n, c, h, w = x.shape
        if out is None:
            out = self.kind.result(x, self.out_channels)
        first, second = (*(s.data_ptr() for s in sums), 0, 0)[:2]
        self._compute(x, (first, second), out, (n, h, w, c, self.out_channels), relu)
        return out

    @abstractmethod
    def _compute(
        self, x: Tensor, sums: tuple[int, int], out: Tensor, sizes: tuple[int, ...], relu: bool
    ) -> None:
        """Calls the kernel: sums are addresses or 0, sizes those of x and C'."""


class Winograd(NativeConvolution):
    """A convolution with its weight as Winograd's algorithm multiplies with it.

    Args:
        weight: (C', C, 3, 3); of :attr:`Kind.UP` (C, C', 4, 4).
        bias: (C') or None.
        kind: of the layer.
        tile: m of F(m×m, 3×3): 2, or, of :attr:`Kind.SAME` in float32, 4.
        dtype: what it multiplies in; of bfloat16, C is even.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        kind: Kind,
        tile: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.tile = tile
        order = (2, 3, 0, 1) if kind == Kind.UP else (2, 3, 1, 0)
        taps = weight.permute(order).double()
        super().__init__(kind, taps.shape[-1], _packed(taps, _axes(kind, tile), dtype), bias)

    def _compute(
        self, x: Tensor, sums: tuple[int, int], out: Tensor, sizes: tuple[int, ...], relu: bool
    ) -> None:
        assert x.dtype == self.packed.dtype
        _native.core().winograd_cpu(
            x.data_ptr(),
            _native.DTYPE_CODES[self.packed.dtype],
            self.native,
            sums,
            out.data_ptr(),
            sizes,
            self.tile,
            int(self.kind),
            relu,
            torch.get_num_threads(),
        )


def _axes(kind: Kind, tile: int) -> list[Tensor]:
    """What makes a filter's taps to weights of the points, (points, taps), for each phase."""
    axis = _axis(tile)
    if kind == Kind.SAME:
        return [axis]
    if kind == Kind.DOWN:  # the outer taps see the odd inputs, the middle one the even ones
        down = torch.zeros_like(axis)
        down[:-1, 0], down[:-1, 2], down[-1, 1] = axis[:-1, 0], axis[:-1, 1], 1
        return [down]
    even, odd = axis.new_zeros(3, 4), axis.new_zeros(3, 4)
    even[0, 3] = even[1, 1] = odd[1, 2] = odd[2, 0] = 1
    return [axis @ even, axis @ odd]


def _axis(tile: int) -> Tensor:
    """G (m + 2, 3): values of the filter's polynomial at the points, scaled, and its last tap."""
    points = torch.tensor(_POINTS[tile], dtype=torch.float64)
    distances = points[:, None] - points + torch.eye(len(points), dtype=torch.float64)
    values = points[:, None] ** torch.arange(3) / distances.prod(1, keepdim=True)
    if tile == 2:
        values[0] *= -1  # the native transform has it the other way round
    return torch.cat([values, torch.tensor([[0.0, 0.0, 1.0]], dtype=torch.float64)])


def _packed(taps: Tensor, axes: list[Tensor], dtype: torch.dtype) -> Tensor:
    """Taps (k, k, C, C') as the native code reads them: panels of each point."""
    c, d = taps.shape[2:]
    side = axes[0].shape[0]
    columns: list[list[Tensor]] = [[] for _ in range(side * side)]
    for p, rows in enumerate(axes):
        for q, across in enumerate(axes):
            own = [
                i * side + j
                for i in range(side)
                for j in range(side)
                if _belongs(i, p, side, len(axes)) and _belongs(j, q, side, len(axes))
            ]
            weights = torch.kron(rows, across)[own] @ taps.flatten(2).flatten(0, 1)
            for point, weight in zip(own, weights.to(dtype).view(-1, c, d), strict=True):
                columns[point].append(F.pad(weight, (0, padded(d) - d)))
    return torch.cat([in_panels(torch.cat(parts, 1)) for parts in columns])


def _belongs(point: int, phase: int, side: int, phases: int) -> bool:
    """Whether a point counts for a phase: of two, the first lacks the last and vice versa."""
    return phases == 1 or (point != side - 1 if phase == 0 else point != 0)
