"""Pictures of any size, made to fit a network's strides."""

from __future__ import annotations

import torch
from torch import Tensor

from clipweather_fast.ops._direct import dispatcher_idle

__all__ = ["padded", "padded_length"]


def padded_length(length: int, multiple: int, minimum: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``length`` and ``minimum``."""
    return -(-max(length, minimum) // multiple) * multiple


def padded(image: Tensor, multiple: int, minimum: int) -> Tensor:
    """An image (N, C, H, W) extended to the right and below to sides that the network takes.

    The border is mirrored (without repeating the edge); where a side is too short for that, its
    last row or column is repeated. The image itself where nothing is missing.
    """
    height, width = image.shape[2:]
    rows = padded_length(height, multiple, minimum) - height
    columns = padded_length(width, multiple, minimum) - width
    if 0 <= rows < height and 0 <= columns < width and rows + columns and _plain(image):
        return _mirrored(image, rows, columns)
    for axis in (2, 3):
        length = image.shape[axis]
        target = padded_length(length, multiple, minimum)
        if target != length:
            image = image.index_select(axis, _source(length, target, image.device))
    return image


def _plain(image: Tensor) -> bool:
    """Whether the result may be written piece by piece: no gradient, no tracing, on a CPU."""
    if torch.compiler.is_compiling() or image.device.type != "cpu":
        return False
    return not (torch.is_grad_enabled() and image.requires_grad) and dispatcher_idle((image,))


def _mirrored(image: Tensor, rows: int, columns: int) -> Tensor:
    """The same in a tenth of the time, channels-last."""
    n, channels, height, width = image.shape
    shape = (n, channels, height + rows, width + columns)
    out = torch.empty(
        shape, dtype=image.dtype, device=image.device, memory_format=torch.channels_last
    )
    out[:, :, :height, :width].copy_(image)
    if columns:
        side = out[:, :, :height, width - 1 - columns : width - 1]
        out[:, :, :height, width:].copy_(side.flip(3))
    if rows:
        out[:, :, height:].copy_(out[:, :, height - 1 - rows : height - 1].flip(2))
    return out


def _source(length: int, target: int, device: torch.device) -> Tensor:
    """For each of ``target`` positions, the one of ``length`` whose value it takes."""
    position = torch.arange(target, device=device)
    if target - length < length:
        return torch.where(position < length, position, 2 * (length - 1) - position)
    return position.clamp(max=length - 1)
