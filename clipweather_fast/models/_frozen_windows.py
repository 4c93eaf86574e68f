"""Convolutions of small images as products with a packed weight, which is read once.

oneDNN rearranges the weight of a convolution in every call; of 4 × 4 pixels that is most of its
time.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.models._frozen_layers import FrozenLinear

__all__ = ["PhaseProducts", "WindowProduct"]


class WindowProduct:
    """A 3×3 convolution of stride 2 and padding 1.

    Args:
        weight: (C', C, 3, 3) of the dtype to compute in.
        bias: (C') or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.linear = FrozenLinear(weight.permute(0, 2, 3, 1).flatten(1), bias, weight.dtype)

    def __call__(self, image: Tensor, activation: str = "none") -> Tensor:
        """(N, C, H, W) to (N, C', ⌈H / 2⌉, ⌈W / 2⌉), channels-last; through ``"relu"`` or not."""
        pixels = F.pad(image.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        windows = pixels.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3)
        y = self.linear(windows.flatten(3)).permute(0, 3, 1, 2)
        return y.relu_() if activation == "relu" else y


class PhaseProducts:
    """A transposed 4×4 convolution of stride 2 and padding 1.

    Every pixel of the result sees 2 × 2 of the image, of the weight one of four parts.

    Args:
        weight: (C, C', 4, 4) of the dtype to compute in.
        bias: (C') or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.out_channels = weight.shape[1]
        taps = ((3, 1), (2, 0))  # of even and of odd rows and columns, for the pixels in order
        self.linears = []
        for rows in taps:
            for columns in taps:
                part = weight[:, :, rows][..., columns].permute(1, 2, 3, 0)
                self.linears.append(FrozenLinear(part.flatten(1), bias, weight.dtype))

    def __call__(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', 2H, 2W), channels-last."""
        n, _, h, w = image.shape
        pixels = F.pad(image.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))
        y = torch.empty((n, 2 * h, 2 * w, self.out_channels), dtype=image.dtype)
        for i, linear in enumerate(self.linears):
            p, q = divmod(i, 2)
            seen = [pixels[:, p + a : p + a + h, q + b : q + b + w] for a in (0, 1) for b in (0, 1)]
            y[:, p::2, q::2] = linear(torch.cat(seen, -1))
        return y.permute(0, 3, 1, 2)
