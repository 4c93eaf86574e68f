"""Samples of pictures on their way to a device and back."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.ops._direct import dispatcher_idle

__all__ = ["averaged", "finite", "prepared", "store", "store_finite"]

#: Pixels that are rounded at once.
BLOCK = 1 << 16
#: Codes of csrc/inference/picture_ends.h.
LEVELS = {torch.float32: 0, torch.uint8: 1}


def prepared(image: Tensor, device: torch.device, *, any_layout: bool = False) -> Tensor:
    """On the device, in [0, 1]. Integers travel as such: they are smaller.

    Args:
        image: of any dtype that pictures have.
        device: where it is wanted.
        any_layout: whether its layout may stay; the result may be the image itself. Else it
            becomes channels-last.
    """
    if image.dtype == torch.uint16:
        image = image.to(torch.float32).div_(65535)  # devices know little of uint16
    here = image.to(device, non_blocking=True)
    x = here.to(torch.float32)
    if not any_layout:
        x = x.contiguous(memory_format=torch.channels_last)
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


def finite(values: Tensor) -> bool:
    """Whether all of them are."""
    # The sum needs no memory, and is finite unless a value is not or the sum overflows.
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def store_finite(restored: Tensor, out: Tensor) -> bool:
    """:func:`store`, and whether all was finite; if not, ``out`` may hold anything.

    Args:
        restored: a picture (1, 3, H, W), float32.
        out: of the same shape.
    """
    if not _native_stores(restored, out):
        if not finite(restored):
            return False
        store(restored, out)
        return True
    stored: bool = _native.core().picture_output_cpu(
        restored.data_ptr(),
        out.data_ptr(),
        out.stride(),
        LEVELS[out.dtype],
        (*restored.shape[2:], restored.stride(2)),
        torch.get_num_threads(),
    )
    return stored


def _native_stores(restored: Tensor, out: Tensor) -> bool:
    """Whether one native pass reads and writes these."""
    if restored.device.type != "cpu" or out.device.type != "cpu" or out.dtype not in LEVELS:
        return False
    if restored.dtype != torch.float32 or restored.shape != out.shape:
        return False
    if restored.shape[0] != 1 or (restored.stride(1), restored.stride(3)) != (1, 3):
        return False  # channels-last, but for rows that may be longer
    if requested_backend() not in ("auto", "cpu") or _native.why_not_loaded() is not None:
        return False
    return dispatcher_idle((restored, out))


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
