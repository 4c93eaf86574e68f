"""Parts of picture files: what a crop needs is decoded, and no more where the format allows it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from clipweather_fast.restore import deep, images, metadata
from clipweather_fast.restore.picture import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Source", "Window", "padded", "picture_source"]


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels. It may reach beyond the lower and the right edge of the picture."""

    top: int
    left: int
    height: int
    width: int


class Source:
    """An opened picture file; the size is known, nothing is decoded.

    Attributes:
        height, width: upright, as EXIF's orientation asks for.
        bytes_per_sample: 1, or 2 where it may have 16 bits.
    """

    def __init__(self, path: Path, image: Image) -> None:
        self.path = path
        self._image = image
        self._plain = _is_plain(image)
        self.bytes_per_sample = 1 if self._plain else 2
        turned = not self._plain and metadata.orientation(image) in (5, 6, 7, 8)
        width, height = _stored_size(image)
        self.height, self.width = (width, height) if turned else (height, width)

    def read(self, window: Window | None = None) -> Samples:
        """The samples (H, W, 3) in a window, or of the whole picture; uint8 or uint16.

        A window that reaches beyond the picture gets what is there: pad it with :func:`padded`.
        Gray becomes RGB, transparency is left out. Read once: a second window needs a new source.

        Raises:
            PictureError: the file is damaged where the window needs it.
        """
        box = window or Window(0, 0, self.height, self.width)
        bottom = min(self.height, box.top + box.height)
        right = min(self.width, box.left + box.width)
        if self._plain:
            with images.in_words(self.path, "cannot be decoded"):
                _stop_below(self._image, bottom)
                part = self._image.crop((box.left, box.top, right, bottom))
                pixels = np.asarray(part)
            pixels = pixels[..., None] if pixels.ndim == 2 else pixels[..., :3]
        else:
            whole = images.read_picture(self.path).pixels
            pixels = whole[box.top : bottom, box.left : right]
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


@contextmanager
def picture_source(path: Path) -> Iterator[Source]:
    """Opens a picture file.

    Raises:
        PictureError: there is no such file, or it is no picture.
    """
    with images.header(path) as image:
        yield Source(path, image)


def padded(pixels: Samples, height: int, width: int) -> Samples:
    """The picture mirrored at its lower and right edge until it has that size."""
    missing = (max(0, height - pixels.shape[0]), max(0, width - pixels.shape[1]))
    if not any(missing):
        return pixels
    return np.pad(pixels, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="reflect")


def _is_plain(image: Image) -> bool:
    """Whether Pillow alone reads it right: 8 bits, upright, one frame, RGB or gray."""
    if image.format not in ("PNG", "JPEG", "WEBP", "BMP") or image.mode not in ("RGB", "L", "RGBA"):
        return False
    if getattr(image, "is_animated", False):
        return False
    if image.format == "PNG" and deep.why_not_deep(image) != "":
        return False
    # EXIF data after a PNG file's pixels are not seen here: that needs the whole file decoded.
    return "exif" not in image.info or metadata.orientation(image) == 1


def _stored_size(image: Image) -> tuple[int, int]:
    """Width and height before any turn; of TIFF files Pillow's size is after it, or not yet."""
    if image.format == "TIFF":
        tags: Any = image.tag_v2  # type: ignore[attr-defined]
        return int(tags[256]), int(tags[257])
    return image.size


def _stop_below(image: Image, bottom: int) -> None:
    """Lets the decoder of a PNG file end with a row: a crop needs nothing below it."""
    raw: Any = image
    rows = image.format == "PNG" and not image.info.get("interlace") and len(raw.tile) == 1
    if rows and bottom < image.height:
        tile = raw.tile[0]
        raw.tile = [tile._replace(extents=(0, 0, image.width, bottom))]
        raw._size = (image.width, bottom)
