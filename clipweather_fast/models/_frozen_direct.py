"""Convolutions of the frozen form as they are defined, in float32 by a matrix unit.

Winograd's algorithm saves a quarter to a half of the products of strided ones and adds transforms,
which cost more where six products of bfloat16 parts take less time than one of float32. An infinite
number gives NaN, and numbers below 2^-110 lose digits: see csrc/common/cpu_matrix_parts.h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.models._frozen_winograd import Kind, NativeConvolution
from clipweather_fast.ops import _native

__all__ = ["Direct"]

#: Channels of a register of weights: 16 pairs of them, or, of a rest of 16, of their parts.
WIDE, NARROW = 32, 16
#: Outputs of a register.
OUTPUTS = 16
#: With more, Winograd's products go by the matrix unit too and were measured to be faster.
MOST_CHANNELS = {Kind.DOWN: 64, Kind.UP: 160}
#: On the coarser side: a weight is laid open for 64 at once.
LEAST_PIXELS = 256


class Direct(NativeConvolution):
    """A convolution with its weight taken apart: see csrc/inference/cpu_part_pixels.h.

    Args:
        weight: (C', C, 3, 3); of :attr:`Kind.UP` (C, C', 4, 4). C is a multiple of 16.
        bias: (C') or None.
        kind: of the layer.
    """

    @staticmethod
    def suits(kind: Kind, image: Tensor, dtype: torch.dtype) -> bool:
        """Whether it takes the layer and was measured to be faster on such an image."""
        n, channels, h, w = image.shape
        if dtype != torch.float32 or kind not in MOST_CHANNELS:
            return False
        if not channels or channels % NARROW or channels > MOST_CHANNELS[kind]:
            return False
        pixels = n * h * w if kind == Kind.UP else n * -(-h // 2) * -(-w // 2)
        return pixels >= LEAST_PIXELS

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: Kind) -> None:
        if kind == Kind.UP:
            # Pixel 2 i + p of the result sees inputs i + p - 1 and i + p by taps 3 - p and 1 - p.
            seen = [[3 - p, 1 - p] for p in range(2)]
            phases = [weight[:, :, p][..., q] for p in seen for q in seen]
            taps = torch.stack([phase.permute(2, 3, 0, 1).flatten(0, 1) for phase in phases])
        else:
            taps = weight.permute(2, 3, 1, 0).flatten(0, 1)[None]
        super().__init__(kind, taps.shape[-1], _packed(taps.float()), bias)

    def _compute(
        self, x: Tensor, sums: tuple[int, int], out: Tensor, sizes: tuple[int, ...], relu: bool
    ) -> None:
        assert x.dtype == torch.float32
        _native.core().direct_cpu(
            x.data_ptr(),
            self.native,
            sums,
            out.data_ptr(),
            sizes,
            int(self.kind),
            relu,
            torch.get_num_threads(),
        )


def _packed(taps: Tensor) -> Tensor:
    """Weights (phases, taps, C, C') as blocks of 16 outputs, each in the order of products."""
    c, d = taps.shape[2:]
    whole = F.pad(taps, (0, -d % OUTPUTS)).unflatten(-1, (-1, OUTPUTS)).movedim(3, 1)
    wide = c // WIDE * WIDE
    # (phases, blocks, taps, steps, three registers, 16 pairs, outputs, 2)
    halves = whole[..., :wide, :].unflatten(3, (wide // WIDE, 2, WIDE // 2))
    steps = [torch.stack(_parts(halves.movedim(4, -1)), 4).flatten(3, -1)]
    if wide < c:
        first, second, third = _parts(whole[..., wide:, :])
        pairs = ((third, first), (first, second), (second, first))
        steps.append(torch.stack([torch.stack(pair, -1) for pair in pairs], 3).flatten(3))
    return torch.cat(steps, -1).flatten()


def _parts(values: Tensor) -> list[Tensor]:
    """Numbers as sums of three of bfloat16."""
    parts = []
    for _ in range(3):
        rounded = values.to(torch.bfloat16)
        # The largest numbers would round to infinity.
        cut = (values.view(torch.int32) & -0x10000).view(torch.float32).to(torch.bfloat16)
        parts.append(torch.where(rounded.isinf(), cut, rounded))
        values = values - parts[-1].float()
    return parts
