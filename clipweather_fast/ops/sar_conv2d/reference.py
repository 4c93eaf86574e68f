"""sar_conv2d in plain PyTorch: the oracle, the documentation, the last fallback."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["depthwise", "sar_conv2d_reference"]


def gated(logits: Tensor, gate: str) -> Tensor:
    """Weight maps from logits (N, K, H, W): softmax over K, sigmoid, or the logits themselves."""
    if gate == "softmax":
        return logits.softmax(1)
    return logits.sigmoid() if gate == "sigmoid" else logits


def depthwise(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (N, C, H, W) filtered by weight (C, 1, k, k), plus bias (C); of an empty x nothing."""
    if x.numel() == 0:  # F.conv2d refuses these; every argument still gets its (zero) gradient
        none = weight.sum() * 0 if bias is None else weight.sum() * 0 + bias.sum() * 0
        return x + none.to(x.dtype)
    return F.conv2d(
        x,
        weight.to(x.dtype),
        None if bias is None else bias.to(x.dtype),
        padding=weight.shape[-1] // 2,
        groups=x.shape[1],
    )


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
    maps = gated(logits, gate)

    def term(n: int) -> Tensor:
        mixed = depthwise(x, weight[n].unsqueeze(1), None if bias is None else bias[n])
        return maps[:, n : n + 1] * mixed

    # From the first term, not from zeros: one pass less in what others are measured against.
    residual = term(0)
    for n in range(1, weight.shape[0]):
        residual = residual + term(n)
    y = residual
    if static_weight is not None:
        y = y + depthwise(x, static_weight, static_bias)
    return (F.gelu(y) if activation == "gelu" else y), residual
