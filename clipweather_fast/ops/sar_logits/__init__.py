"""The weight-map predictor of the spatially-adaptive residual."""

from clipweather_fast.ops.sar_logits.op import sar_logits

__all__ = ["sar_logits"]
