"""A window of a file is the same part of the whole picture, for every kind of file."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from clipweather_fast.data.window import Window, picture_source
from clipweather_fast.restore import Picture, PictureError, read_picture, write_picture
from small_dataset import HEIGHT, WIDTH, noise

RGB = Image.fromarray(noise(0))


def turned(orientation: int) -> dict[str, Any]:
    exif = Image.Exif()
    exif[274] = orientation
    return {"exif": exif}


FILES: dict[str, tuple[Image.Image, dict[str, Any]]] = {
    "rgb.png": (RGB, {}),
    "gray.png": (RGB.convert("L"), {}),
    "alpha.png": (RGB.convert("RGBA"), {}),
    "key.png": (RGB, {"transparency": (1, 2, 3)}),
    "palette.png": (RGB.quantize(20), {}),
    "bilevel.png": (RGB.convert("1"), {}),
    "turned.png": (RGB, turned(6)),
    "rgb.jpg": (RGB, {"quality": 90}),
    "gray.jpg": (RGB.convert("L"), {}),
    "progressive.jpg": (RGB, {"progressive": True}),
    "turned.jpg": (RGB, turned(8)),
    "upright.jpg": (RGB, turned(1)),
    "cmyk.jpg": (RGB.convert("CMYK"), {}),
    "lossless.webp": (RGB, {"lossless": True}),
    "turned.webp": (RGB, {"lossless": True} | turned(5)),
    "rgb.bmp": (RGB, {}),
    "rgb.tif": (RGB, {}),
    "turned.tif": (RGB, {"tiffinfo": {274: 6}}),
    "palette.gif": (RGB.quantize(20), {}),
}
WINDOWS = [Window(0, 0, 4, 5), Window(3, 2, 9, 7), Window(HEIGHT - 6, WIDTH - 10, 6, 10)]


def check(path: Path) -> None:
    whole = read_picture(path).pixels
    whole = np.repeat(whole, 3, axis=2) if whole.shape[2] == 1 else whole
    for window in [*WINDOWS, Window(2, 3, 90, 90), None]:
        with picture_source(path) as source:
            assert (source.height, source.width) == whole.shape[:2]
            part = source.read(window)
        box = window or Window(0, 0, *whole.shape[:2])
        expected = whole[box.top : box.top + box.height, box.left : box.left + box.width]
        assert part.dtype == whole.dtype
        assert part.shape == expected.shape
        assert (part == expected).all()


@pytest.mark.parametrize("name", FILES)
def test_a_window_is_that_part_of_the_picture(name: str, tmp_path: Path) -> None:
    image, told = FILES[name]
    image.save(tmp_path / name, **told)
    check(tmp_path / name)


@pytest.mark.parametrize("name", ["rgb16.png", "gray16.png", "rgb16.tif"])
def test_sixteen_bits_too(name: str, tmp_path: Path) -> None:
    channels = 1 if "gray" in name else 3
    deep = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, channels), dtype=np.uint16)
    if name.endswith("tif"):
        tifffile.imwrite(tmp_path / name, deep, photometric="rgb")
    else:
        write_picture(Picture(deep, "L" if channels == 1 else "RGB"), tmp_path / name)
    check(tmp_path / name)


def test_an_interlaced_file_is_read_whole(tmp_path: Path) -> None:
    # Pillow writes none.
    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    pixels = noise(3, 3, 3)
    passes = [
        ((0, 3, 8), (0, 3, 8)),
        ((0, 3, 8), (4, 3, 8)),
        ((4, 3, 8), (0, 3, 4)),
        ((0, 3, 4), (2, 3, 4)),
        ((2, 3, 4), (0, 3, 2)),
        ((0, 3, 2), (1, 3, 2)),
        ((1, 3, 2), (0, 3, 1)),
    ]
    rows = b""
    for down, across in passes:
        part = pixels[slice(*down), slice(*across)]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    header = struct.pack(">IIBBBBB", 3, 3, 8, 2, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path = tmp_path / "interlaced.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    with picture_source(path) as source:
        assert (source.read(Window(0, 1, 2, 2)) == pixels[:2, 1:]).all()


def test_damage_has_the_files_name(tmp_path: Path) -> None:
    RGB.save(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:200])
    with (
        picture_source(tmp_path / "a.png") as source,
        pytest.raises(PictureError, match=r"a\.png: cannot be decoded"),
    ):
        source.read()
    with (
        pytest.raises(PictureError, match="there is no such file"),
        picture_source(tmp_path / "none.png"),
    ):
        pass
