"""Pictures of any kind as samples, and samples as what a protocol compares."""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from clipweather_fast.evaluation.protocols import BT601, Protocol
from clipweather_fast.restore.images import from_pil, read_picture
from clipweather_fast.restore.picture import Picture

__all__ = ["Planes", "Samples", "arranged", "compared", "samples_of"]

#: (3, H, W): uint8, uint16 or floating point, as they were given; often a view.
Samples: TypeAlias = NDArray[Any]
#: (C, H, W), float64.
Planes: TypeAlias = NDArray[np.float64]

#: Floating-point pictures may go from here to there. A network's raw output may leave [0, 1]: tanh
#: reaches -1, and a picture that tanh is added to reaches 2.
LOWEST, HIGHEST = -1.0, 2.0


def samples_of(picture: Any) -> Samples:
    """The samples of a picture, without copying them if that can be avoided.

    Args:
        picture: a path; a Picture; an image of Pillow's; an array (H, W, 3) or gray (H, W); a
            tensor (3, H, W) or (1, 3, H, W). uint8, uint16, or floating point in [0, 1]. A raw
            output of a network may go from -1 to 2. Transparency is left out.

    Raises:
        TypeError: another type or dtype.
        ValueError: a shape or values that are none of a picture.
        PictureError: a file that cannot be read.
    """
    if isinstance(picture, Tensor):
        return _of_tensor(picture)
    if isinstance(picture, np.ndarray):
        return _of_array(picture)
    if isinstance(picture, str | os.PathLike):
        picture = read_picture(picture)
    # Without importing Pillow, which the caller has imported if this is an image of it.
    elif any(base.__module__ == "PIL.Image" for base in type(picture).__mro__):
        picture = from_pil(picture)
    if isinstance(picture, Picture):
        return _of_array(picture.pixels)
    raise TypeError(
        "a picture must be a path, a Picture, a Pillow image, a NumPy array or a tensor, "
        f"got {type(picture).__name__}"
    )


def arranged(samples: Samples, protocol: Protocol) -> Samples:
    """The samples where a protocol believes them to be."""
    if protocol.colours != "swapped":
        return samples
    # The memory of (3, H, W) read as (H, W, 3).
    height, width = samples.shape[1:]
    return np.ascontiguousarray(samples).reshape(height, width, 3).transpose(2, 0, 1)


def compared(samples: Samples, protocol: Protocol) -> Planes:
    """What a protocol compares, (3 or 1, H, W), of a picture or of some rows of one."""
    planes = np.ascontiguousarray(samples, np.float64)
    if samples.dtype.kind == "u":
        top = float(np.iinfo(samples.dtype).max)
        if not (protocol.eight_bits and top == 255.0):
            planes /= top
    if protocol.colours == "swapped":
        return _luma(planes, BT601[::-1])
    if protocol.eight_bits and samples.dtype != np.uint8:
        planes = np.floor(np.clip(planes, 0.0, 1.0) * 255.0 + 0.5)
    elif samples.dtype.kind == "f":
        planes = np.clip(planes, 0.0, 1.0)
    if protocol.colours == "rgb":
        return planes
    luma = _luma(planes, BT601)
    return luma if protocol.colours == "luma" else luma * (219.0 / 255.0) + 16.0


def _luma(rgb: Planes, weights: tuple[int, ...]) -> Planes:
    # In thousandths, so that of eight-bit samples only the division is rounded.
    red, green, blue = weights
    luma: Planes = rgb[0:1] * red
    luma += rgb[1:2] * green
    luma += rgb[2:3] * blue
    luma /= 1000.0
    return luma


def _of_tensor(given: Tensor) -> Samples:
    shape = tuple(given.shape)
    picture = given[0] if given.dim() == 4 and given.shape[0] == 1 else given
    if picture.dim() != 3 or picture.shape[0] != 3 or 0 in picture.shape:
        raise ValueError(
            f"a tensor must be one picture, (3, H, W) or (1, 3, H, W) with H, W ≥ 1, got {shape}; "
            "of a batch take one picture after the other"
        )
    if picture.is_floating_point():
        picture = picture.double()  # NumPy has no bfloat16
    return _checked(picture.detach().cpu().numpy())


def _of_array(given: Samples) -> Samples:
    if given.ndim not in (2, 3) or given.shape[2:] not in ((), (1,), (3,)) or given.size == 0:
        raise ValueError(
            f"an array must be (H, W, 3) or gray (H, W) with H, W ≥ 1, got {given.shape}; "
            "transparency is not compared, pass the colours alone"
        )
    channels = given if given.ndim == 3 else given[..., None]
    samples = _checked(channels.transpose(2, 0, 1))
    return np.broadcast_to(samples, (3, *samples.shape[1:]))


def _checked(samples: Samples) -> Samples:
    kind = samples.dtype
    if kind in (np.uint8, np.uint16):
        return samples
    if kind.kind != "f":
        raise TypeError(f"samples must be uint8, uint16 or floating point in [0, 1], got {kind}")
    low, high = np.nanmin(samples, initial=0), np.nanmax(samples, initial=0)
    if low < LOWEST or high > HIGHEST:
        raise ValueError(
            "samples of floating point must be in [0, 1] (a network's raw output in "
            f"[{LOWEST:g}, {HIGHEST:g}]), got {low:g} to {high:g}; divide by 255, or pass uint8"
        )
    return samples
