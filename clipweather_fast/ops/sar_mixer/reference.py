"""sar_mixer in plain PyTorch: the two operators it is made of, by their references."""

from __future__ import annotations

from torch import Tensor

from clipweather_fast.ops.sar_conv2d.reference import sar_conv2d_reference
from clipweather_fast.ops.sar_logits.reference import sar_logits_reference

__all__ = ["sar_mixer_reference"]


def sar_mixer_reference(
    z: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
) -> tuple[Tensor, Tensor]:
    """``(y, R)`` of sar_mixer, in the dtype of ``z``."""
    predictor = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
    logits = sar_logits_reference(z, *predictor)
    return sar_conv2d_reference(z, logits, weight, bias, static_weight, static_bias, gate, "gelu")
