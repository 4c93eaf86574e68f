"""Pictures as samples of a batch; as bytes they become floats on the device."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipweather_fast.restore.picture import Samples, in_eight_bits

__all__ = ["check_dtype", "to_tensor", "to_unit_range"]


def check_dtype(who: str, dtype: torch.dtype) -> None:
    """Raises unless pictures can travel so."""
    if dtype not in (torch.float32, torch.uint8):
        raise ValueError(f"{who}: dtype must be torch.float32 or torch.uint8, got {dtype}")


def to_tensor(pixels: Samples, dtype: torch.dtype) -> Tensor:
    """Samples (H, W, 3), uint8 or uint16, as (3, H, W): float32 in [0, 1], or bytes."""
    if dtype == torch.uint8:
        return torch.from_numpy(np.array(in_eight_bits(pixels).transpose(2, 0, 1), order="C"))
    planes = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    return torch.from_numpy(planes).div_(float(np.iinfo(pixels.dtype).max))


def to_unit_range(
    batch: dict[str, Any], device: torch.device | str | None = None
) -> dict[str, Any]:
    """Takes a batch to a device; there, pictures of bytes become float32 in [0, 1].

    Bytes are a quarter of the traffic between processes and to the device, and the values are the
    same as those of a float32 batch to the bit.

    Args:
        batch: what a loader gives: "image" and "truth" (N, 3, H, W), and other tensors, which are
            moved and stay as they are.
        device: None: where the batch is.
    """
    moved: dict[str, Any] = {}
    for name, value in batch.items():
        if isinstance(value, Tensor):
            if device is not None:
                value = value.to(device, non_blocking=True)
            if name in ("image", "truth") and value.dtype == torch.uint8:
                value = value.to(torch.float32).div_(255.0)
        moved[name] = value
    return moved
