"""depthwise_conv2d in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.ops.sar_conv2d.reference import depthwise

__all__ = ["depthwise_conv2d_reference"]


def depthwise_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    """``y`` of depthwise_conv2d, in the dtype of ``x``."""
    y = depthwise(x, weight, bias)
    return F.gelu(y) if activation == "gelu" else y
