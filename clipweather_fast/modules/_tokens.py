"""Tokens and images are two views of one memory.

Dense tokens (N, H·W, C) are a channels-last image (N, C, H, W): going from one to the other moves
no byte, and these functions are how the modules do it.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.modules._observation import observed

__all__ = ["as_image", "as_tokens", "by_heads", "check", "reduced"]


def check(who: str, x: Tensor, height: int, width: int) -> None:
    """``ValueError`` unless ``x`` is (N, L, C) with L = H·W."""
    if x.dim() != 3 or x.shape[1] != height * width:
        raise ValueError(
            f"{who}: x must be (N, L, C) with L = H·W = {height}·{width}, got {tuple(x.shape)}"
        )


def as_image(x: Tensor, height: int, width: int) -> Tensor:
    """Tokens (N, H·W, C) seen as an image (N, C, H, W); channels-last where they are dense."""
    return x.transpose(1, 2).view(x.shape[0], x.shape[2], height, width)


def as_tokens(image: Tensor) -> Tensor:
    """An image (N, C, H, W) seen as tokens (N, H·W, C); dense where the image is channels-last."""
    return image.flatten(2).transpose(1, 2)


def by_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens (N, L, heads·d) seen head by head, (N, L, heads, d)."""
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads)


def reduced(x: Tensor, height: int, width: int, convolution: nn.Conv2d) -> Tensor:
    """Tokens (N, H·W, C) seen as an image, convolved, and seen as tokens again (N, H'·W', D).

    Where the windows do not overlap the convolution is one Linear layer on windows laid out in
    rows. On the CPU that takes a quarter of the time of PyTorch's convolution, at 4 × 4 and above.
    """
    if x.device.type != "cpu" or not _windows(convolution):
        return as_tokens(convolution(as_image(x, height, width)))
    high, wide = convolution.stride
    rows, columns = height // high, width // wide
    if rows * columns == 0:  # its error is the one that is known
        return as_tokens(convolution(as_image(x, height, width)))
    n, channels = x.shape[0], x.shape[2]
    cut = x.view(n, height, width, channels)[:, : rows * high, : columns * wide]
    windows = cut.view(n, rows, high, columns, wide, channels).transpose(2, 3)
    weight = convolution.weight.permute(0, 2, 3, 1).flatten(1)
    return F.linear(windows.reshape(n, rows * columns, -1), weight, convolution.bias)


def _windows(convolution: nn.Conv2d) -> bool:
    """Whether every output sees a window of its own, all of it inside the image, and nobody else
    has a say in the convolution."""
    return (
        type(convolution) is nn.Conv2d
        and not observed(convolution)
        and convolution.kernel_size == convolution.stride
        and convolution.padding == (0, 0)
        and convolution.dilation == (1, 1)
        and convolution.groups == 1
    )
