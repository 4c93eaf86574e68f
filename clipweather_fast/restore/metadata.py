"""What a picture file holds besides its pixels, and what its encoder is told."""

from __future__ import annotations

import math
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipweather_fast.restore.picture import Picture

if TYPE_CHECKING:
    from PIL.Image import Exif, Image

__all__ = ["LYING", "options", "orientation", "read", "unwarned", "without_gray"]

ORIENTATION = 0x0112
#: Entries that describe the photograph: description, maker, model, software, time, artist,
#: computer, copyright, ratings, and Windows' title, comment, author, keywords and subject. The
#: others describe how the file is stored, which is not how the new one will be.
DESCRIBING = {270, 271, 272, 305, 306, 315, 316, 33432, 0x4746, 0x4749, *range(0x9C9B, 0x9CA0)}
#: Blocks of their own: the camera's settings, and the place.
BLOCKS = (0x8769, 0x8825)
INTEROPERABILITY = 0xA005
#: Columns and rows, in the camera's block.
SIDES = (0xA002, 0xA003)
#: Where a TIFF file keeps XMP data; what precedes them in a chunk of PNG (keyword, not compressed,
#: no language, no translation); and the most that fits into a segment of JPEG.
XMP = 700
XMP_IN_PNG = b"XML:com.adobe.xmp\0\0\0\0\0"
XMP_IN_JPEG = 65_502
#: Names of columns and rows in XMP data.
XMP_SIDES = (
    (b"tiff:ImageWidth", b"tiff:ImageLength"),
    (b"exif:PixelXDimension", b"exif:PixelYDimension"),
)
#: Orientations that exchange rows and columns.
LYING = (5, 6, 7, 8)
#: Compressions of TIFF that lose nothing and that Pillow can write for any mode.
LOSSLESS_TIFF = {
    "raw",
    "tiff_lzw",
    "tiff_adobe_deflate",
    "tiff_deflate",
    "packbits",
    "lzma",
    "zstd",
}
#: Chunks of PNG that say what its colours mean, where no profile does.
COLOUR_CHUNKS = (b"cHRM", b"cICP", b"gAMA", b"sRGB")
BILEVEL_TIFF = {"group3", "group4", "tiff_ccitt"}

_lock = threading.RLock()


def read(image: Image) -> dict[str, Any]:
    """The fields of a :class:`Picture` other than its samples and path."""
    dpi = image.info.get("dpi")
    try:
        numbers = None if dpi is None else (float(dpi[0]), float(dpi[1]))
    except (ArithmeticError, TypeError, ValueError, IndexError):
        numbers = None
    if numbers is not None and not all(math.isfinite(v) and 0 < v < 1e6 for v in numbers):
        numbers = None
    format = image.format or "PNG"
    # First: to look for EXIF data Pillow may decode the picture, and lets go of the file.
    encoding = _encoding(image)
    return {
        "format": "JPEG" if format == "MPO" else format,
        "icc_profile": image.info.get("icc_profile") or None,
        "exif": _exif(image),
        "xmp": _xmp(image),
        "dpi": numbers,
        "encoding": encoding,
    }


def orientation(image: Image) -> int:
    """EXIF's orientation, 1 to 8; 1 if there is none or none that makes sense."""
    with _unharmed():
        value = image.getexif().get(ORIENTATION, 1)
        if value in range(1, 9):
            return int(value)
    return 1


def options(picture: Picture, format: str, quality: int) -> dict[str, Any]:
    """What to tell Pillow's encoder."""
    told: dict[str, Any] = {}
    if picture.icc_profile and format in ("PNG", "JPEG", "TIFF", "WEBP"):
        told["icc_profile"] = picture.icc_profile
    xmp = picture.xmp
    if format == "TIFF":
        told["exif"] = _flat(picture.exif or b"")
        if xmp is not None:
            told["exif"][XMP] = xmp
    elif picture.exif is not None and format in ("PNG", "JPEG", "WEBP"):
        told["exif"] = picture.exif
    if xmp is not None and (format == "WEBP" or (format == "JPEG" and len(xmp) <= XMP_IN_JPEG)):
        told["xmp"] = xmp
    if picture.dpi is not None and format in ("PNG", "JPEG", "TIFF", "BMP"):
        told["dpi"] = picture.dpi
    encoding = picture.encoding
    if format == "PNG":
        from PIL.PngImagePlugin import PngInfo

        told["pnginfo"] = PngInfo()
        for name, data in encoding.get("colours", ()):
            told["pnginfo"].add(name, data)
        if xmp is not None:
            told["pnginfo"].add(b"iTXt", XMP_IN_PNG + xmp)
    elif format == "JPEG":
        told["quality"] = quality
        told["subsampling"] = encoding.get("subsampling", 0)
        told["progressive"] = encoding.get("progressive", False)
    elif format == "WEBP":
        # exact: colours under full transparency are kept too.
        told |= {"quality": quality, "lossless": encoding.get("lossless", False), "exact": True}
    elif format == "TIFF":
        usual = encoding.get("compression", "tiff_adobe_deflate")
        fits = usual in LOSSLESS_TIFF or (picture.mode == "1" and usual in BILEVEL_TIFF)
        compression = usual if fits else "tiff_adobe_deflate"
        told["compression"] = None if compression == "raw" else compression
    return told


def without_gray(profile: bytes | None) -> bytes | None:
    """The profile, unless it is one of gray values, which a file of colours cannot have."""
    gray = profile is not None and profile[16:20] == b"GRAY"  # the header's colour space
    return None if gray else profile


@contextmanager
def unwarned() -> Iterator[None]:
    """Keeps Pillow's hints about broken metadata from the user, who did not ask for them.

    One thread at a time: warning filters, and Pillow's limit of pixels, belong to the process.
    """
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _unharmed() -> Iterator[None]:
    """Lets a picture with broken metadata through without them."""
    try:
        with unwarned():
            yield
    except Exception:  # Pillow raises anything over broken EXIF data
        return


def _exif(image: Image) -> bytes | None:
    """The describing part of the EXIF data, orientation 1."""
    from PIL import Image as pillow

    with _unharmed():
        found: Exif = image.getexif()
        kept = pillow.Exif()
        for number, value in found.items():
            if number in DESCRIBING:
                kept[number] = value
        for number in BLOCKS:
            block = dict(found.get_ifd(number))
            block.pop(INTEROPERABILITY, None)
            if found.get(ORIENTATION) in LYING and all(side in block for side in SIDES):
                columns, rows = SIDES
                block[columns], block[rows] = block[rows], block[columns]
            if block:
                kept[number] = block
        if ORIENTATION in found:
            kept[ORIENTATION] = 1
        if len(kept):
            return kept.tobytes()
    return None


def _xmp(image: Image) -> bytes | None:
    """The XMP data, orientation 1, with the sides that the upright picture has."""
    found = image.info.get("xmp")
    if not isinstance(found, bytes) or not found.strip(b"\0 "):
        return None
    lying = orientation(image) in LYING
    found = re.sub(rb"(tiff:Orientation(?:=[\"']|>)\s*)\d", rb"\g<1>1", found)
    for one, other in XMP_SIDES if lying else ():
        found = found.replace(one, b"\0").replace(other, one).replace(b"\0", other)
    return found


def _flat(exif: bytes) -> Exif:
    """EXIF data without its blocks, which Pillow cannot put into a compressed TIFF file."""
    from PIL import Image as pillow

    flat = pillow.Exif()
    flat.load(exif)
    for number in BLOCKS:
        if number in flat:
            del flat[number]
    return flat


def _encoding(image: Image) -> dict[str, Any]:
    if image.format in ("JPEG", "MPO"):
        from PIL.JpegImagePlugin import get_sampling

        sampling = get_sampling(image)
        told = {"progressive": bool(image.info.get("progressive"))}
        return told | ({"subsampling": sampling} if sampling in (0, 1, 2) else {})
    if image.format == "WEBP":
        return {"lossless": _is_lossless_webp(image)}
    if image.format == "TIFF":
        return {"compression": image.info.get("compression", "raw")}
    if image.format == "PNG":
        return {"colours": _colour_chunks(image)}
    return {}


def _colour_chunks(image: Image) -> tuple[tuple[bytes, bytes], ...]:
    """Names and contents of the chunks before the pixels that give the colours a meaning."""
    found = {}
    file = image.fp  # type: ignore[attr-defined]
    with _unharmed():
        place = file.tell()
        file.seek(8)
        while len(header := file.read(8)) == 8 and header[4:] != b"IDAT":
            size = int.from_bytes(header[:4])
            if header[4:] in COLOUR_CHUNKS and size <= 32:  # none has more
                found[header[4:]] = file.read(size)
                size = 0
            file.seek(size + 4, 1)
        file.seek(place)
    return tuple(found.items())


def _is_lossless_webp(image: Image) -> bool:
    """Whether the first picture chunk of the file is of the lossless kind."""
    file = image.fp  # type: ignore[attr-defined]
    with _unharmed():
        place = file.tell()
        file.seek(12)
        while len(header := file.read(8)) == 8:
            if header[:4] in (b"VP8L", b"VP8 "):
                file.seek(place)
                return bool(header[:4] == b"VP8L")
            size = int.from_bytes(header[4:], "little")
            file.seek(size + size % 2, 1)
    return False
