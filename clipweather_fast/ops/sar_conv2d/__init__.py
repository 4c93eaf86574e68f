"""Spatially-adaptive depthwise convolution."""

from clipweather_fast.ops.sar_conv2d.op import sar_conv2d

__all__ = ["sar_conv2d"]
