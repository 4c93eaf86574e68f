"""dense_conv2d in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["dense_conv2d_reference"]


def dense_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
) -> Tensor:
    """``y`` of dense_conv2d, in the dtype of ``x``."""
    weight = weight.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    convolve = F.conv_transpose2d if transposed else F.conv2d
    y: Tensor = convolve(x, weight, bias, stride=stride, padding=padding)
    return y
