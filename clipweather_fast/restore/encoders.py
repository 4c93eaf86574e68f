"""What Pillow does not write: PNG and TIFF with 16 bits, and compressed TIFF with EXIF data.

Both are simple formats, compressed with zlib, which Python has.
"""

from __future__ import annotations

import struct
import zlib
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from clipweather_fast.restore.inks import inks
from clipweather_fast.restore.metadata import XMP, XMP_IN_PNG, without_gray
from clipweather_fast.restore.picture import Picture, Samples

__all__ = ["write_png", "write_tiff"]

#: Bytes per strip of a TIFF file and per block of rows of a PNG file, before compression.
BLOCK = 1 << 20
#: Twice as fast as zlib's usual 6 for 2 % more bytes (photographs with 16 bits).
COMPRESSION_LEVEL = 4


def _samples(picture: Picture) -> Samples:
    """(H, W, C) with transparency as the last channel."""
    if picture.alpha is None:
        return picture.pixels
    return np.concatenate([picture.pixels, picture.alpha[..., None]], axis=2)


# ---- PNG ---------------------------------------------------------------------------------------

#: Colour types of PNG by the number of samples per pixel.
COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}


def write_png(picture: Picture, file: BinaryIO) -> None:
    """Writes a 16-bit picture as PNG, with its ICC profile, EXIF, XMP and resolution."""
    samples = _samples(picture)
    height, width, channels = samples.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    header = struct.pack(">IIBBBBB", width, height, 16, COLOUR_TYPES[channels], 0, 0, 0)
    _chunk(file, b"IHDR", header)
    for name, data in picture.encoding.get("colours", ()):
        if name != b"sRGB" or not picture.icc_profile:  # the two exclude each other
            _chunk(file, name, data)
    if picture.icc_profile:
        _chunk(file, b"iCCP", b"ICC Profile\0\0" + zlib.compress(picture.icc_profile))
    if picture.dpi is not None:
        per_metre = [round(value / 0.0254) for value in picture.dpi]
        _chunk(file, b"pHYs", struct.pack(">IIB", *per_metre, 1))
    if picture.exif is not None:
        _chunk(file, b"eXIf", picture.exif.removeprefix(b"Exif\0\0"))
    if picture.xmp is not None:
        _chunk(file, b"iTXt", XMP_IN_PNG + picture.xmp)
    deflate = zlib.compressobj(COMPRESSION_LEVEL)
    rows = max(1, BLOCK // (width * channels * 2))
    above = np.zeros((1, width * channels * 2), np.uint8)
    for begin in range(0, height, rows):
        block = np.ascontiguousarray(samples[begin : begin + rows].astype(">u2"))
        scanlines = block.view(np.uint8).reshape(block.shape[0], -1)
        packed = deflate.compress(_filtered(scanlines, above, channels * 2))
        if packed:
            _chunk(file, b"IDAT", packed)
        above = scanlines[-1:]
    _chunk(file, b"IDAT", deflate.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, name: bytes, data: bytes) -> None:
    file.write(struct.pack(">I", len(data)) + name + data)
    file.write(struct.pack(">I", zlib.crc32(name + data)))


def _filtered(scanlines: NDArray[np.uint8], above: NDArray[np.uint8], step: int) -> bytes:
    """Each row by the filter after which it looks smallest, its number first (PNG, section 9)."""
    up = np.concatenate([above, scanlines[:-1]])
    left, corner = np.zeros_like(scanlines), np.zeros_like(scanlines)
    left[:, step:], corner[:, step:] = scanlines[:, :-step], up[:, :-step]
    a, b, c = (array.astype(np.int16) for array in (left, up, corner))
    near_a, near_b, near_c = abs(b - c), abs(a - c), abs(a + b - 2 * c)
    paeth = np.where(near_b <= near_c, up, corner)
    paeth[(near_a <= near_b) & (near_a <= near_c)] = left[(near_a <= near_b) & (near_a <= near_c)]
    average = ((a + b) >> 1).astype(np.uint8)
    guesses = {1: left, 2: up, 3: average, 4: paeth}
    best = np.concatenate([np.zeros((len(scanlines), 1), np.uint8), scanlines], axis=1)
    least = _size(scanlines)
    for number, guess in guesses.items():
        rest = scanlines - guess
        size = _size(rest)
        better = size < least
        best[better, 0], best[better, 1:] = number, rest[better]
        least = np.minimum(least, size)
    return best.tobytes()


def _size(rows: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Sums of the bytes taken as signed numbers: the usual guess of how well a row compresses."""
    sizes: NDArray[np.int64] = np.abs(rows.view(np.int8).astype(np.int16)).sum(1, dtype=np.int64)
    return sizes


# ---- TIFF --------------------------------------------------------------------------------------


def write_tiff(picture: Picture, file: BinaryIO) -> None:
    """Writes a gray, RGB or CMYK picture as TIFF, with its ICC profile, EXIF, XMP and resolution.

    Compressed with zlib and horizontal differences, or not at all if the original was not. 16-bit
    gray with transparency becomes RGB with transparency.
    """
    if picture.mode == "CMYK" and picture.inks is not None:
        samples: Samples = inks(picture.pixels, picture.inks)
    else:
        samples = _samples(picture)
    if samples.shape[2] == 2 and samples.itemsize == 2:  # which many readers (Pillow) do not know
        samples = samples[..., [0, 0, 0, 1]]
    height, width, channels = samples.shape
    depth = samples.itemsize
    packed = picture.encoding.get("compression") != "raw"
    rows = min(height, max(1, BLOCK // (width * channels * depth)))
    strips = [_strip(samples[begin : begin + rows], packed) for begin in range(0, height, rows)]
    directory = _directory(picture, samples, rows, packed)
    sizes = [len(strip) for strip in strips]
    # Offsets count from the end of the directory; Pillow adds where that is when it writes it.
    directory[273] = tuple(sum(sizes[:i]) for i in range(len(sizes)))
    directory[279] = tuple(sizes)
    directory.save(file)
    for strip in strips:
        file.write(strip)


def _strip(samples: Samples, packed: bool) -> bytes:
    little = samples.dtype.newbyteorder("<")
    if not packed:
        return samples.astype(little).tobytes()
    differences = samples.copy()
    differences[:, 1:] -= samples[:, :-1]
    return zlib.compress(differences.astype(little).tobytes(), COMPRESSION_LEVEL)


def _directory(picture: Picture, samples: Samples, rows: int, packed: bool) -> Any:
    from PIL import Image, TiffImagePlugin

    height, width, channels = samples.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    if picture.exif is not None:
        exif = Image.Exif()
        exif.load(picture.exif)
        directory.update(exif)
        for number in (34665, 34853):  # where EXIF keeps the camera's data, and the place
            if block := dict(exif.get_ifd(number)):
                directory[number] = block
    directory[256], directory[257] = width, height
    directory[258] = (8 * samples.itemsize,) * channels
    directory[259] = 8 if packed else 1
    directory[262] = {"CMYK": 5}.get(picture.mode, 2 if channels >= 3 else 1)
    directory[277], directory[278], directory[284] = channels, rows, 1
    if packed:
        directory[317] = 2
    if channels in (2, 4) and picture.mode != "CMYK":
        directory[338] = 2
    directory[339] = (1,) * channels
    if picture.dpi is not None:
        directory[282], directory[283] = picture.dpi
        directory[296] = 2
    if picture.xmp is not None:
        directory.tagtype[XMP] = 1
        directory[XMP] = picture.xmp
    profile = picture.icc_profile
    if channels >= 3 and picture.mode == "L":
        profile = without_gray(profile)
    if profile:
        directory.tagtype[34675] = 7
        directory[34675] = profile
    return directory
