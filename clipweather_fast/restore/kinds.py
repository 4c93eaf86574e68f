"""What a Restorer takes, as one kind of tensor, and the result as what was given."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipweather_fast.restore.images import from_pil, read_picture
from clipweather_fast.restore.picture import Picture, luma

__all__ = ["Taken", "take"]

#: Floating-point pictures may reach this far beyond 0 and 1; farther, they are no such pictures.
BEYOND = 0.5
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Taken:
    """A picture, or a batch of them, on its way through a network.

    Attributes:
        images: (N, 3, H, W), a view of what was given wherever that is possible: uint8 in [0, 255],
            uint16 in [0, 65535], or floating point in [0, 1].
        out: the same shape and dtype, for the result; for NumPy's kinds (N, H, W, 3) in memory.
        give: the result in the kind that was given, once ``out`` is filled.
    """

    images: Tensor
    out: Tensor
    give: Callable[[], Any]


def take(picture: Any) -> Taken:
    """Prepares a path, Picture, Pillow image, NumPy array or tensor.

    Raises:
        TypeError: another type or dtype.
        ValueError: a shape or values that are none of a picture.
        PictureError: a file that cannot be read.
    """
    if isinstance(picture, Tensor):
        return _tensor(picture)
    if isinstance(picture, np.ndarray):
        return _array(picture)
    if isinstance(picture, str | os.PathLike):
        return _picture(read_picture(picture))
    if isinstance(picture, Picture):
        return _picture(picture)
    # Without importing Pillow, which the caller has imported if this is an image of it.
    if any(base.__module__ == "PIL.Image" for base in type(picture).__mro__):
        taken = from_pil(picture)
        inner = _picture(taken)
        return Taken(inner.images, inner.out, lambda: inner.give().to_pil())
    raise TypeError(
        "Restorer: a picture must be a path, a Picture, a Pillow image, a NumPy array or a tensor, "
        f"got {type(picture).__name__}"
    )


def _tensor(given: Tensor) -> Taken:
    if given.dtype not in (torch.uint8, *FLOATS):
        raise TypeError(
            f"Restorer: a tensor must be floating point in [0, 1], or uint8, got {given.dtype}"
        )
    if given.dim() not in (3, 4) or given.shape[-3] != 3 or 0 in given.shape[-2:]:
        raise ValueError(
            "Restorer: a tensor must be (3, H, W) or (N, 3, H, W) with H, W ≥ 1, "
            f"got {tuple(given.shape)}"
        )
    images = given.detach()
    if given.is_floating_point() and given.numel():
        low, high = torch.aminmax(images)
        _check_range("a tensor", low.item(), high.item())
    out = torch.empty_like(images)
    views = (images, out) if given.dim() == 4 else (images[None], out[None])
    return Taken(*views, lambda: out)


def _array(given: NDArray[Any]) -> Taken:
    array = given.astype(given.dtype.newbyteorder("="), copy=False)
    if array.dtype not in (np.uint8, np.uint16, np.float16, np.float32, np.float64):
        raise TypeError(
            "Restorer: an array must be uint8, uint16 or floating point in [0, 1], "
            f"got {given.dtype}"
        )
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or array.size == 0:
        raise ValueError(
            "Restorer: an array must be (H, W, 3) or gray (H, W) with H, W ≥ 1, got "
            f"{given.shape}; transparency is not restored, pass the colours alone"
        )
    if array.dtype.kind == "f":
        _check_range("an array", float(array.min()), float(array.max()))
    images, out = _views(array)

    def give() -> NDArray[Any]:
        rgb = out[0].permute(1, 2, 0).numpy()
        return rgb if given.ndim == 3 else luma(rgb)

    return Taken(images, out, give)


def _picture(given: Picture) -> Taken:
    gray = given.pixels.shape[2] == 1
    images, out = _views(given.pixels[..., 0] if gray else given.pixels)
    return Taken(images, out, lambda: given.with_pixels(out[0].permute(1, 2, 0).numpy()))


def _views(array: NDArray[Any]) -> tuple[Tensor, Tensor]:
    """(H, W, 3) or (H, W) as (1, 3, H, W), and memory for a result of that shape."""
    # PyTorch knows no negative strides, and warns of memory that may not be written.
    if any(stride < 0 for stride in array.strides) or not array.flags.writeable:
        array = array.copy()
    whole = torch.from_numpy(array)
    images = whole.permute(2, 0, 1)[None] if array.ndim == 3 else whole[None, None]
    out = torch.empty((1, *array.shape[:2], 3), dtype=whole.dtype).permute(0, 3, 1, 2)
    return images.expand(1, 3, *array.shape[:2]), out


def _check_range(what: str, low: float, high: float) -> None:
    # Written so that NaN fails.
    if not (low >= -BEYOND and high <= 1 + BEYOND):
        raise ValueError(
            f"Restorer: {what} of floating point must be finite and in [0, 1], got values from "
            f"{low:g} to {high:g}; divide by 255, or pass uint8"
        )
