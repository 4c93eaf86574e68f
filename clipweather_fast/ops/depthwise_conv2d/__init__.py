"""Depthwise convolution with its bias and activation."""

from clipweather_fast.ops.depthwise_conv2d.op import depthwise_conv2d

__all__ = ["depthwise_conv2d"]
