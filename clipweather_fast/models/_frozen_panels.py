"""Linear layers of the frozen form in float32, and how the weights lie that it multiplies with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.ops import _native

__all__ = ["PART", "PanelLinear", "in_panels"]

#: kPanel and kPart of csrc/inference/panels.h.
PANEL, PART = 32, 16


def in_panels(weight: Tensor) -> Tensor:
    """A matrix (N, K) as panels of 32 of its rows, side by side, padded with zeros; float32."""
    n, k = weight.shape
    padded = F.pad(weight, (0, 0, 0, -n % PANEL))
    return padded.view(-1, PANEL, k).transpose(1, 2).to(torch.float32).flatten()


class PanelLinear:
    """A Linear layer in float32, by csrc/inference/linear_cpu.cpp.

    Args:
        weight: (N, K), N a multiple of 16.
        bias: (N) float32, or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        self.out_features = weight.shape[0]
        self.packed = in_panels(weight)
        self.bias = None if bias is None else bias.contiguous()
        self.native = (_native.address(self.packed), _native.address(self.bias))

    def __call__(self, x: Tensor) -> Tensor:
        """(…, K) to (…, N)."""
        x = x.contiguous()
        k = x.shape[-1]
        y = torch.empty((*x.shape[:-1], self.out_features))
        _native.core().linear_cpu(
            x.data_ptr(),
            self.native,
            y.data_ptr(),
            (x.numel() // k, self.out_features, k),
            torch.get_num_threads(),
        )
        return y
