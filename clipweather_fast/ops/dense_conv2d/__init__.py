"""Dense convolution, or transposed convolution, with its bias."""

from clipweather_fast.ops.dense_conv2d.op import dense_conv2d

__all__ = ["dense_conv2d"]
