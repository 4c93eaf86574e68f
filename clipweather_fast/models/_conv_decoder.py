"""The convolutional decoder: from features at stride 64 and the encoder's to a picture."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.modules._convolution import convolved
from clipweather_fast.modules._joint import joined_rims

__all__ = ["Conv", "ConvDecoder", "Detail"]


class Conv(nn.Module):
    """A 3×3 convolution under the name ``conv2d``."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv2d = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', H, W)."""
        return convolved(x, self.conv2d)


class Up(nn.Module):
    """A transposed convolution that doubles the sides, under the name ``conv2d``."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv2d = nn.ConvTranspose2d(channels, out_channels, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', 2H, 2W)."""
        return convolved(x, self.conv2d)


class Residual(nn.Module):
    """x + 0.1 · conv(relu(conv(x)))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels, channels)
        self.conv2 = Conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to the same shape."""
        return torch.add(x, self.conv2(F.relu(self.conv1(x), inplace=True)), alpha=0.1)


class Detail(nn.Module):
    """Shows the decoder's features the picture itself: x + conv(relu(conv([x; picture]))).

    Patches of stride 4 in few channels keep no fine edges; without this a narrow network can tell
    that there is a flake, but not where exactly it ends.

    Args:
        channels: of the features.
        hidden: between the two convolutions.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = Conv(channels + 3, hidden)
        self.conv2 = Conv(hidden, channels)

    def forward(self, x: Tensor, picture: Tensor) -> Tensor:
        """(N, C, H, W) and (N, 3, H, W) to (N, C, H, W)."""
        both = torch.cat((x, picture), dim=1)
        y: Tensor = x + self.conv2(F.relu(self.conv1(both), inplace=True))
        return y


class ConvDecoder(nn.Module):
    """Parameters as TransWeather's ``convprojection``, whose ``conv_output`` it leaves unused.

    Args:
        dims: channels of the four stages.
        tail: channels at strides 2 and 1.
        outputs: channels of the last convolution.
    """

    def __init__(self, dims: tuple[int, ...], tail: tuple[int, ...], outputs: int = 3) -> None:
        super().__init__()
        d1, d2, d3, d4 = dims
        d0, channels = tail
        self.convd32x = Up(d4, d4)
        self.convd16x = Up(d4, d3)
        self.dense_4 = nn.Sequential(Residual(d3))
        self.convd8x = Up(d3, d2)
        self.dense_3 = nn.Sequential(Residual(d2))
        self.convd4x = Up(d2, d1)
        self.dense_2 = nn.Sequential(Residual(d1))
        self.convd2x = Up(d1, d0)
        self.dense_1 = nn.Sequential(Residual(d0))
        self.convd1x = Up(d0, channels)
        self.conv_output = Conv(channels, outputs)

    def features(self, stages: list[Tensor], deepest: Tensor) -> Tensor:
        """What the last convolution makes a picture of, (N, C, H, W).

        Args:
            stages: the encoder's features at strides 4, 8, 16 and 32.
            deepest: features at stride 64.
        """
        f1, f2, f3, f4 = stages
        x = _fitting(self.convd32x(deepest), f4) + f4
        joined_rims(self, x)
        x = _fitting(self.convd16x(x), f3)
        for dense, skip, up in (
            (self.dense_4, f3, self.convd8x),
            (self.dense_3, f2, self.convd4x),
            (self.dense_2, f1, self.convd2x),
        ):
            x = dense(x) + skip
            joined_rims(dense, x)
            x = up(x)
        y: Tensor = self.convd1x(self.dense_1(x))
        return y

    def forward(self, stages: list[Tensor], deepest: Tensor) -> Tensor:
        """What the last activation gets, (N, outputs, H, W); arguments as :meth:`features`."""
        y: Tensor = self.conv_output(self.features(stages, deepest))
        return y


def _fitting(x: Tensor, skip: Tensor) -> Tensor:
    """``x`` without the row or column that it has beyond ``skip``."""
    if x.shape[2:] == skip.shape[2:]:
        return x
    return x[:, :, : skip.shape[2], : skip.shape[3]]
