"""sar_conv2d in plain PyTorch: the oracle, the documentation, the last fallback."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["sar_conv2d_reference"]


def gated(logits: Tensor, gate: str) -> Tensor:
    """Weight maps from logits (N, K, H, W): softmax over K, sigmoid, or the logits themselves."""
    if gate == "softmax":
        return logits.softmax(1)
    return logits.sigmoid() if gate == "sigmoid" else logits


def sar_conv2d_reference(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    activation: str,
) -> tuple[Tensor, Tensor]:
    """``(y, R)`` of sar_conv2d, in the dtype of ``x``."""
    channels, padding = x.shape[1], weight.shape[-1] // 2
    maps = gated(logits, gate)
    weight = weight.to(x.dtype)
    residual = torch.zeros_like(x)
    for n in range(weight.shape[0]):
        mixed = F.conv2d(
            x,
            weight[n].unsqueeze(1),
            None if bias is None else bias[n].to(x.dtype),
            padding=padding,
            groups=channels,
        )
        residual = residual + maps[:, n : n + 1] * mixed
    y = residual
    if static_weight is not None:
        y = y + F.conv2d(
            x,
            static_weight.to(x.dtype),
            None if static_bias is None else static_bias.to(x.dtype),
            padding=padding,
            groups=channels,
        )
    return (F.gelu(y) if activation == "gelu" else y), residual
