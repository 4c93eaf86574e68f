"""Strided convolutions of small images as products of windows, for a matrix unit.

Its products are so fast that a layer of few pixels takes the time in which its weight is read. Of
all forms this one reads least: Winograd's has 16/9 (stride 2) and 36/16 (transposed) times as much.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clipweather_fast.models._frozen_panels import PanelLinear
from clipweather_fast.models._frozen_winograd import Kind

__all__ = ["Windows"]

#: Rows of a product up to which this is faster than Winograd's form.
MOST_ROWS = {
    torch.bfloat16: {Kind.DOWN: 512, Kind.UP: 128},
    torch.float32: {Kind.DOWN: 64, Kind.UP: 64},
}
#: What gathers windows, and the four products of a transposed layer, need a weight worth it.
LEAST_CHANNELS = {
    torch.bfloat16: {Kind.DOWN: 0, Kind.UP: 256},
    torch.float32: {Kind.DOWN: 256, Kind.UP: 256},
}


class Windows:
    """A convolution by 3×3 of stride 2, or a transposed one by 4×4, as products.

    Args:
        weight: (C', C, 3, 3); of :attr:`Kind.UP` (C, C', 4, 4).
        bias: (C') or None.
        kind: of the layer: :attr:`Kind.DOWN` or :attr:`Kind.UP`.
        dtype: what it multiplies in.
    """

    @staticmethod
    def suits(weight: Tensor, kind: Kind, image: Tensor, dtype: torch.dtype) -> bool:
        """Whether it takes the layer and was measured to be faster on such an image."""
        n, channels, h, w = image.shape
        if kind not in MOST_ROWS[dtype] or channels % 2 or channels < LEAST_CHANNELS[dtype][kind]:
            return False
        out_channels = weight.shape[1 if kind == Kind.UP else 0]
        if out_channels % 16:
            return False
        rows = n * h * w if kind == Kind.UP else n * -(-h // 2) * -(-w // 2)
        return rows <= MOST_ROWS[dtype][kind]

    def __init__(self, weight: Tensor, bias: Tensor | None, kind: Kind, dtype: torch.dtype) -> None:
        self.kind = kind
        if kind == Kind.UP:
            # Pixel 2 i + p of the result sees inputs i + p - 1 and i + p by taps 3 - p and 1 - p.
            phases = [[3 - p, 1 - p] for p in range(2)]
            matrices = [weight[:, :, p][..., q].permute(1, 2, 3, 0) for p in phases for q in phases]
        else:
            matrices = [weight.permute(0, 2, 3, 1)]
        self.products = [PanelLinear(matrix.flatten(1).to(dtype), bias) for matrix in matrices]

    def __call__(self, image: Tensor) -> Tensor:
        """An image (N, C, H, W), channels-last, to (N, C', H', W'), channels-last."""
        n, channels, h, w = image.shape
        # Room for the windows of odd sides too.
        framed = image.new_zeros(n, h + 2, w + 2, channels)
        framed[:, 1:-1, 1:-1] = image.permute(0, 2, 3, 1)
        if self.kind == Kind.DOWN:
            rows, columns = -(-h // 2), -(-w // 2)
            y = self.products[0](_windows(framed, rows, columns, 3, 2))
            return y.view(n, rows, columns, -1).permute(0, 3, 1, 2)
        y = image.new_empty(n, h, 2, w, 2, self.products[0].out_features)
        for phase, product in enumerate(self.products):
            p, q = phase // 2, phase % 2
            found = product(_windows(framed[:, p:, q:], h, w, 2, 1))
            y[:, :, p, :, q] = found.view(n, h, w, -1)
        return y.view(n, 2 * h, 2 * w, -1).permute(0, 3, 1, 2)


def _windows(framed: Tensor, rows: int, columns: int, side: int, stride: int) -> Tensor:
    """Windows of images (N, H, W, C) as rows of a matrix, (N · rows · columns, side² · C)."""
    n, channels = framed.shape[0], framed.shape[3]
    image, row, column, _ = framed.stride()
    # Neighbours in a row lie side by side.
    shape = n, rows, columns, side, side * channels
    found = framed.as_strided(shape, (image, stride * row, stride * column, row, 1))
    return found.reshape(n * rows * columns, -1)
