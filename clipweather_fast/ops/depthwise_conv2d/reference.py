"""depthwise_conv2d in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["depthwise_conv2d_reference"]


def depthwise_conv2d_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str
) -> Tensor:
    """``y`` of depthwise_conv2d, in the dtype of ``x``."""
    y = F.conv2d(
        x,
        weight.to(x.dtype),
        None if bias is None else bias.to(x.dtype),
        padding=weight.shape[-1] // 2,
        groups=x.shape[1],
    )
    return F.gelu(y) if activation == "gelu" else y
