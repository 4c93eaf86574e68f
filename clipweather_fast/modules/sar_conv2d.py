"""Spatially-adaptive residual convolution, as a module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules import _construction

__all__ = ["SARConv2d"]


class SARConv2d(nn.Module):
    r"""Predicts for every pixel how to mix K depthwise kernels, and filters the image so.

    .. math::
        W &= \mathrm{gate}(\mathrm{pointwise}(\mathrm{GELU}(\mathrm{depthwise}(x)))) \\
        R &= \sum_n W_n \, (\mathrm{DWConv}(x, \mathrm{weight}[n]) + \mathrm{bias}[n])

    It starts as the uniform mixture: the last layer of the predictor is zero.

    Args:
        channels: C of the features.
        num_kernels: K, 1 to 8.
        kernel_size: k of the mixed kernels, 3, 5 or 7 (the predictor's own kernel is 3×3).
        gate: ``"softmax"`` over K, or ``"sigmoid"``.

    Attributes:
        depthwise, pointwise: the predictor's two convolutions (C → C, 3×3 depthwise; C → K, 1×1).
        weight, bias: the kernels (K, C, k, k) and their biases (K, C).

    Reference:
        Eqs. 4-5 of "Exploring the Application of Large-scale Pre-trained Models on Adverse Weather
        Removal" (arXiv 2306.09008).

    Raises:
        ValueError: for an argument outside the above.
    """

    def __init__(
        self, channels: int, num_kernels: int = 3, kernel_size: int = 3, *, gate: str = "softmax"
    ) -> None:
        super().__init__()
        who = type(self).__name__
        _construction.positive(who, channels=channels, num_kernels=num_kernels)
        _construction.one_of(who, "num_kernels", num_kernels, tuple(range(1, 9)))
        _construction.one_of(who, "kernel_size", kernel_size, (3, 5, 7))
        _construction.one_of(who, "gate", gate, ("softmax", "sigmoid"))
        self.channels, self.num_kernels, self.kernel_size = channels, num_kernels, kernel_size
        self.gate = gate
        self.depthwise = _construction.depthwise(channels)
        self.pointwise = nn.Conv2d(channels, num_kernels, 1)
        self.weight = nn.Parameter(torch.empty(num_kernels, channels, kernel_size, kernel_size))
        self.bias = nn.Parameter(torch.empty(num_kernels, channels))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernels as the network's other depthwise convolutions; a predictor that says 1/K."""
        _construction.initialise(self.depthwise)
        nn.init.zeros_(self.pointwise.weight)
        if self.pointwise.bias is not None:
            nn.init.zeros_(self.pointwise.bias)
        nn.init.normal_(self.weight, std=math.sqrt(2.0) / self.kernel_size)
        nn.init.zeros_(self.bias)

    def logits(self, x: Tensor) -> Tensor:
        """The maps before the gate, (N, K, H, W), for features (N, C, H, W)."""
        logits: Tensor = ops.sar_logits(
            x,
            self.depthwise.weight,
            self.depthwise.bias,
            self.pointwise.weight,
            self.pointwise.bias,
        )
        return logits

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, C, H, W) to their residual R (N, C, H, W)."""
        residual: Tensor = ops.sar_conv2d(x, self.logits(x), self.weight, self.bias, gate=self.gate)
        return residual

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.channels}, {self.num_kernels}, {self.kernel_size}, gate={self.gate!r}"
