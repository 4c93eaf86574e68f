"""Samples of pictures on their way to a device and back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["averaged", "prepared", "store"]

#: Pixels that are rounded at once.
BLOCK = 1 << 16


def prepared(image: Tensor, device: torch.device) -> Tensor:
    """On the device, in [0, 1], channels-last. Integers travel as such: they are smaller."""
    if image.dtype == torch.uint16:
        image = image.to(torch.float32).div_(65535)  # devices know little of uint16
    here = image.to(device, non_blocking=True)
    x = here.to(torch.float32).contiguous(memory_format=torch.channels_last)
    return x if image.is_floating_point() else x.div_(torch.iinfo(image.dtype).max)


def store(restored: Tensor, out: Tensor) -> None:
    """Writes float32 into a picture's dtype and device, clamped and rounded to its levels."""
    # A few rows at a time stay in the processor's cache; a GPU takes them all at once.
    rows = max(1, BLOCK // out.shape[3]) if restored.device.type == "cpu" else out.shape[2]
    for part, target in zip(restored.split(rows, 2), out.split(rows, 2), strict=True):
        part = part.clamp(0, 1)
        if not out.is_floating_point():
            part.mul_(torch.iinfo(out.dtype).max).round_()
        if out.dtype == torch.uint8:
            part = part.to(torch.uint8)  # before it travels
        target.copy_(part.to(out.device))


def averaged(image: Tensor, most_pixels: int) -> Tensor:
    """A picture averaged over k × k pixels so that it has at most ``most_pixels``."""
    height, width = image.shape[2:]
    k = math.ceil(math.sqrt(height * width / most_pixels))
    if k <= 1:
        return image
    while math.ceil(height / min(k, height)) * math.ceil(width / min(k, width)) > most_pixels:
        k += 1 + k // 4
    levels = 1 if image.is_floating_point() else torch.iinfo(image.dtype).max
    window = min(k, height), min(k, width)
    # A few rows at a time: in float32 a large picture takes much memory.
    rows = [
        F.avg_pool2d(part.to(torch.float32), window, ceil_mode=True)
        for part in image.split(window[0] * 64, dim=2)
    ]
    return torch.cat(rows, dim=2).div_(levels)
