"""sar_logits in plain PyTorch."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["sar_logits_reference"]


def sar_logits_reference(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
) -> Tensor:
    """The logits of sar_logits, in the dtype of ``x``."""
    hidden = F.conv2d(
        x,
        depthwise_weight.to(x.dtype),
        depthwise_bias.to(x.dtype),
        padding=1,
        groups=x.shape[1],
    )
    return F.conv2d(F.gelu(hidden), pointwise_weight.to(x.dtype), pointwise_bias.to(x.dtype))
