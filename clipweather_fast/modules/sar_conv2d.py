"""Spatially-adaptive residual convolution, as a module."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules import _construction
from clipweather_fast.modules._observation import observed

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

        kernel_bias: whether the kernels have biases.
        per_channel: maps of their own for every channel, W (N, K, C, H, W), by a pointwise
            convolution with a group per channel. No kernel does this: it is plain PyTorch, and
            holds K times the features in memory.

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
        self,
        channels: int,
        num_kernels: int = 3,
        kernel_size: int = 3,
        *,
        gate: str = "softmax",
        kernel_bias: bool = True,
        per_channel: bool = False,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        _construction.positive(who, channels=channels, num_kernels=num_kernels)
        _construction.one_of(who, "num_kernels", num_kernels, tuple(range(1, 9)))
        _construction.one_of(who, "kernel_size", kernel_size, (3, 5, 7))
        _construction.one_of(who, "gate", gate, ("softmax", "sigmoid"))
        self.channels, self.num_kernels, self.kernel_size = channels, num_kernels, kernel_size
        self.gate, self.per_channel = gate, per_channel
        self.depthwise = _construction.depthwise(channels)
        maps, groups = (num_kernels * channels, channels) if per_channel else (num_kernels, 1)
        self.pointwise = nn.Conv2d(channels, maps, 1, groups=groups)
        self.weight = nn.Parameter(torch.empty(num_kernels, channels, kernel_size, kernel_size))
        bias = torch.empty(num_kernels, channels) if kernel_bias else None
        self.bias = None if bias is None else nn.Parameter(bias)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Kernels as the network's other depthwise convolutions; a predictor that says 1/K."""
        _construction.initialise(self.depthwise)
        nn.init.zeros_(self.pointwise.weight)
        if self.pointwise.bias is not None:
            nn.init.zeros_(self.pointwise.bias)
        nn.init.normal_(self.weight, std=math.sqrt(2.0) / self.kernel_size)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def logits(self, x: Tensor) -> Tensor:
        """The maps before the gate for features (N, C, H, W): (N, K, H, W).

        With ``per_channel`` (N, C · K, H, W), the kernels of a channel side by side.
        """
        if self.per_channel or observed(self.depthwise, self.pointwise):
            maps: Tensor = self.pointwise(F.gelu(self.depthwise(x)))
            return maps
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
        if self.per_channel:
            return self._mixed_per_channel(x)
        residual: Tensor = ops.sar_conv2d(x, self.logits(x), self.weight, self.bias, gate=self.gate)
        return residual

    def _mixed_per_channel(self, x: Tensor) -> Tensor:
        """R where every channel has its own maps; kernels of a channel lie side by side."""
        logits = self.logits(x).unflatten(1, (self.channels, self.num_kernels))
        maps = logits.softmax(2) if self.gate == "softmax" else logits.sigmoid()
        kernels = self.weight.transpose(0, 1).flatten(0, 1).unsqueeze(1)
        bias = None if self.bias is None else self.bias.t().flatten()
        filtered = F.conv2d(x, kernels, bias, padding=self.kernel_size // 2, groups=self.channels)
        mixed: Tensor = (maps * filtered.view_as(logits)).sum(2)
        return mixed

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.channels}, {self.num_kernels}, {self.kernel_size}, gate={self.gate!r}"
