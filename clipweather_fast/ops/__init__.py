"""Functions on tensors: the fused operators, and the choice of who computes them."""

from clipweather_fast.ops._backends import (
    BACKENDS,
    BackendUnavailable,
    explain,
    use_backend,
)
from clipweather_fast.ops.dense_conv2d import dense_conv2d
from clipweather_fast.ops.depthwise_conv2d import depthwise_conv2d
from clipweather_fast.ops.reduced_kv_attention import reduced_kv_attention
from clipweather_fast.ops.sar_conv2d import sar_conv2d
from clipweather_fast.ops.sar_logits import sar_logits
from clipweather_fast.ops.sar_mixer import sar_mixer

__all__ = [
    "BACKENDS",
    "BackendUnavailable",
    "dense_conv2d",
    "depthwise_conv2d",
    "explain",
    "reduced_kv_attention",
    "sar_conv2d",
    "sar_logits",
    "sar_mixer",
    "use_backend",
]
