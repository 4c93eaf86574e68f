"""Files with sixteen bits per sample, of which Pillow's images hold gray ones only.

Pillow decodes such a file twice, and unpacks once the high and once the low byte of every sample.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipweather_fast.restore import metadata

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["read_deep", "why_not_deep"]

#: Entries of a TIFF file, and what they say of files that need care.
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 258, 277
PHOTOMETRIC, WHITE_IS_ZERO = 262, 0
PLANAR_CONFIGURATION, SEPARATE = 284, 2


def _raw_mode(image: Image) -> str:
    """How Pillow's decoder is told to unpack the samples, such as "RGB;16B"."""
    arguments = image.tile[0].args if image.tile else ""  # type: ignore[attr-defined]
    return str(arguments[0] if isinstance(arguments, tuple) else arguments)


def _is_in_planes(image: Image) -> bool:
    """Whether a TIFF file holds 16-bit colours one after the other."""
    tags = getattr(image, "tag_v2", {})
    several = tags.get(SAMPLES_PER_PIXEL, 1) > 1 and tags.get(PLANAR_CONFIGURATION) == SEPARATE
    return several and 16 in tags.get(BITS_PER_SAMPLE, ())


def why_not_deep(image: Image) -> str | None:
    """Why an opened PNG or TIFF file cannot be read by :func:`read_deep`.

    An empty string: its samples have 8 bits or fewer, and Pillow reads it alone.
    """
    raw = _raw_mode(image)
    if image.mode in ("I", "F") or raw.startswith("I;12"):
        return f"its samples are of a kind ({raw}) that is not supported; 1, 8 and 16 bits are"
    if _is_in_planes(image):
        # Unpacked plane by plane, the low bytes cannot be asked for.
        return (
            "its 16-bit samples are stored one colour after the other (PlanarConfiguration 2); "
            "colours side by side are supported"
        )
    if ";16" not in raw:
        return ""
    if raw.split(";")[0] not in ("I", "LA", "RGB", "RGBA", "RGBX"):
        return (
            f"its 16-bit samples are held as {raw}; gray and RGB are supported, with transparency "
            "or without"
        )
    return None


def read_deep(
    opened: Callable[[], AbstractContextManager[Image]], load: Callable[[Image], None]
) -> tuple[NDArray[np.uint16], int]:
    """The samples (H, W, C) of a file for which :func:`why_not_deep` says None.

    And the EXIF orientation that is left to apply: for TIFF Pillow has applied it.

    Args:
        opened: opens the file, and does it again at each call.
        load: decodes it.
    """
    with opened() as image:
        raw = _raw_mode(image)
        if image.mode.startswith("I;16"):
            load(image)
            gray = np.array(image).astype(np.uint16)[..., None]
            if getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == WHITE_IS_ZERO:
                gray ^= 0xFFFF  # with 8 bits Pillow does this itself
            return gray, metadata.orientation(image)
        if raw.startswith("LA"):
            # Two samples have four bytes: what Pillow takes for four samples of eight bits.
            quarters = _unpacked(image, load, "RGBA").astype(np.uint16)
            samples = np.bitwise_or(quarters[..., 0::2] << 8, quarters[..., 1::2])
            return samples, metadata.orientation(image)
        order = raw[-1] if raw[-1] != "N" else {"little": "L", "big": "B"}[sys.byteorder]
        samples = _unpacked(image, load, raw[:-1] + order).astype(np.uint16)
    samples <<= 8
    with opened() as image:
        # Told the other byte order, Pillow keeps the low byte for the high one.
        samples |= _unpacked(image, load, raw[:-1] + {"L": "B", "B": "L"}[order])
        left = metadata.orientation(image)
    return samples[..., :3] if raw.startswith("RGBX") else samples, left


def _unpacked(image: Image, load: Callable[[Image], None], raw: str) -> NDArray[np.uint8]:
    tiles: list[Any] = image.tile  # type: ignore[attr-defined]
    image.tile = [  # type: ignore[attr-defined]
        tile._replace(args=(raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw)
        for tile in tiles
    ]
    load(image)
    return np.asarray(image)
