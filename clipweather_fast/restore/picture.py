"""A decoded picture, with all that must come out again as it went in."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Mode", "Picture", "PictureError", "Samples", "in_eight_bits", "luma"]

#: uint8 or uint16; mypy cannot say "the same one in two places".
Samples: TypeAlias = NDArray[Any]
Mode: TypeAlias = Literal["1", "L", "P", "RGB", "CMYK"]

#: Weights of red, green and blue in a gray value (ITU-R BT.601), in 1/1000.
LUMA = (299, 587, 114)


class PictureError(ValueError):
    """A picture that cannot be read or written. The message is ``<path>: <what is wrong>``.

    Attributes:
        path: the file.
        words: what is wrong with it, and the way out if there is one.
    """

    def __init__(self, path: str | os.PathLike[str], words: str) -> None:
        super().__init__(path, words)
        self.path = Path(path)
        self.words = words

    def __str__(self) -> str:
        return f"{self.path}: {self.words}"


@dataclass(frozen=True, eq=False)
class Picture:
    """Colours, transparency, and how the file held them. Make one with ``read_picture``.

    Attributes:
        pixels: (H, W, 3) red, green, blue, or (H, W, 1) gray; uint8 in [0, 255] or uint16 in
            [0, 65535]. A picture of inks (CMYK) is here as the light it reflects, in uint16.
        mode: how the file holds colours: "1" black or white, "L" gray, "P" in a palette, "RGB" or
            "CMYK".
        alpha: (H, W), opacity, in the dtype of ``pixels``; None: opaque.
        inks: (H, W, 4) uint8, what a CMYK picture's file held, else None.
        format: the file's format: "PNG", "JPEG", "TIFF", "WEBP", "BMP" or "GIF".
        icc_profile: what its colours mean; passed on, never applied.
        exif: a block of EXIF data that begins with ``b"Exif\\0\\0"``, orientation 1.
        xmp: a block of XMP data (what editors and catalogues write: ratings, captions, keywords,
            rights), orientation 1. JPEG holds 64 KiB of it; it is left out of one if there is more.
        dpi: pixels per inch, across and down.
        encoding: what the file's encoder was told: ``subsampling``, ``progressive`` (JPEG),
            ``lossless`` (WebP), ``compression`` (TIFF), ``colours`` (PNG: the names and contents of
            its chunks gAMA, cHRM, sRGB and cICP).
        path: where it was read.
        left_out: what else its file held, in words; None: nothing that is a picture.
    """

    pixels: Samples
    mode: Mode
    alpha: Samples | None = None
    inks: NDArray[np.uint8] | None = None
    format: str = "PNG"
    icc_profile: bytes | None = None
    exif: bytes | None = None
    dpi: tuple[float, float] | None = None
    encoding: Mapping[str, Any] = field(default_factory=dict)
    path: Path | None = None
    xmp: bytes | None = None
    left_out: str | None = None

    @property
    def height(self) -> int:
        """Rows."""
        return len(self.pixels)

    @property
    def width(self) -> int:
        """Columns."""
        return int(self.pixels.shape[1])

    @property
    def bits(self) -> int:
        """Bits per sample in the file: 1, 8 or 16."""
        if self.mode == "1":
            return 1
        return 16 if self.pixels.dtype == np.uint16 and self.mode != "CMYK" else 8

    def with_pixels(self, rgb: Samples) -> Picture:
        """The same picture with other colours.

        Args:
            rgb: (H, W, 3) in the dtype of ``pixels``. A gray picture takes their luma.
        """
        expected = (self.height, self.width, 3)
        if rgb.shape != expected or rgb.dtype != self.pixels.dtype:
            raise ValueError(
                f"with_pixels: rgb must be {expected} {self.pixels.dtype}, "
                f"got {rgb.shape} {rgb.dtype}"
            )
        return replace(self, pixels=rgb if self.pixels.shape[2] == 3 else luma(rgb)[..., None])

    def save(self, path: str | os.PathLike[str], quality: int = 95) -> None:
        """Writes the picture; the same as ``write_picture(picture, path, quality)``."""
        from clipweather_fast.restore.images import write_picture

        write_picture(self, path, quality)

    def to_pil(self) -> Image:
        """As an image of Pillow's, with its ICC profile, EXIF, XMP and resolution in ``info``.

        Raises:
            ValueError: 16-bit colours or 16 bits with transparency, which Pillow does not have.
        """
        from clipweather_fast.restore.images import to_pil

        return to_pil(self)


def in_eight_bits(samples: Samples) -> NDArray[np.uint8]:
    """16-bit samples rounded to 8 bits; 8-bit ones as they are."""
    if samples.dtype == np.uint8:
        return samples
    return ((samples.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def luma(rgb: NDArray[Any]) -> NDArray[Any]:
    """(H, W, 3) to gray (H, W), same dtype. Equal integers give exactly their value."""
    gray: NDArray[Any]
    if rgb.dtype.kind == "f":
        gray = rgb @ (np.asarray(LUMA, rgb.dtype) / 1000)
    else:
        red, green, blue = (rgb[..., i].astype(np.uint32) * LUMA[i] for i in range(3))
        gray = (red + green + blue + 500) // 1000
    return gray.astype(rgb.dtype, copy=False)
