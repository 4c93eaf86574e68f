"""sar_logits in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.ops.sar_conv2d.reference import depthwise

__all__ = ["sar_logits_reference"]


def sar_logits_reference(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
) -> Tensor:
    """The logits of sar_logits, in the dtype of ``x``."""
    hidden = F.gelu(depthwise(x, depthwise_weight, depthwise_bias))
    if x.numel() == 0:
        n, _, h, w = x.shape
        zero = hidden.sum() + pointwise_weight.sum().to(x.dtype) * 0
        return (pointwise_bias.to(x.dtype).view(1, -1, 1, 1) + zero).repeat(n, 1, h, w)
    return F.conv2d(hidden, pointwise_weight.to(x.dtype), pointwise_bias.to(x.dtype))
