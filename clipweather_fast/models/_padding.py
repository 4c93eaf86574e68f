"""Pictures of any size, made to fit a network's strides."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["padded", "padded_length"]


def padded_length(length: int, multiple: int, minimum: int) -> int:
    """The smallest multiple of ``multiple`` that is at least ``length`` and ``minimum``."""
    return -(-max(length, minimum) // multiple) * multiple


def padded(image: Tensor, multiple: int, minimum: int) -> Tensor:
    """An image (N, C, H, W) extended to the right and below to sides that the network takes.

    The border is mirrored (without repeating the edge); where a side is too short for that, its
    last row or column is repeated. The image itself where nothing is missing.
    """
    for axis in (2, 3):
        length = image.shape[axis]
        target = padded_length(length, multiple, minimum)
        if target != length:
            image = image.index_select(axis, _source(length, target, image.device))
    return image


def _source(length: int, target: int, device: torch.device) -> Tensor:
    """For each of ``target`` positions, the one of ``length`` whose value it takes."""
    position = torch.arange(target, device=device)
    if target - length < length:
        return torch.where(position < length, position, 2 * (length - 1) - position)
    return position.clamp(max=length - 1)
