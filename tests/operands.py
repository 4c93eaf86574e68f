"""Random operands that several ops' tests share: float64, on the CPU."""

from __future__ import annotations

import torch
from torch import Tensor


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def predictor(channels: int, kernels: int) -> dict[str, Tensor | None]:
    """Parameters of the weight-map predictor, by the names sar_logits and sar_mixer give them."""
    return {
        "depthwise_weight": normal(channels, 1, 3, 3) / 3,
        "depthwise_bias": normal(channels),
        "pointwise_weight": normal(kernels, channels, 1, 1) / max(channels, 1) ** 0.5,
        "pointwise_bias": normal(kernels),
    }


def mixed_kernels(
    channels: int, kernels: int, k: int, bias: bool, static: bool
) -> dict[str, Tensor | None]:
    """The K mixed kernels and the static one, by the names sar_conv2d and sar_mixer give them."""
    return {
        "weight": normal(kernels, channels, k, k) / k,
        "bias": normal(kernels, channels) if bias else None,
        "static_weight": normal(channels, 1, k, k) / k if static else None,
        "static_bias": normal(channels) if static and bias else None,
    }
