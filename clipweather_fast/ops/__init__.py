"""Functions on tensors: the fused operators, and the choice of who computes them."""

from clipweather_fast.ops._backends import (
    BACKENDS,
    BackendUnavailable,
    explain,
    use_backend,
)
from clipweather_fast.ops.sar_conv2d import sar_conv2d

__all__ = ["BACKENDS", "BackendUnavailable", "explain", "sar_conv2d", "use_backend"]
