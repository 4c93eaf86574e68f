"""What goes into a file comes out of it, and every bad file gives one kind of error."""

from __future__ import annotations

import contextlib
import dataclasses
import pickle
import shutil
import struct
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms, PngImagePlugin

from clipweather_fast.restore import Picture, PictureError, images, read_picture, write_picture
from clipweather_fast.restore.images import from_pil, side_by_side

HEIGHT, WIDTH = 20, 31
PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
MAKER, ORIENTATION, EXPOSURE, CAMERA, PLACE = 271, 274, 33434, 0x8769, 0x8825


def noise(channels: int, dtype: Any = np.uint8) -> NDArray[Any]:
    levels = np.iinfo(dtype).max + 1
    generator = np.random.default_rng(channels)
    return generator.integers(0, levels, (HEIGHT, WIDTH, channels), dtype=dtype)


def smooth() -> Image.Image:
    """A picture that JPEG changes little."""
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    values = np.stack([4 * rows, 5 * columns, 100 + rows + columns], axis=2)
    return Image.fromarray(values.astype(np.uint8))


def exif(orientation: int = 1, blocks: bool = True) -> Image.Exif:
    """EXIF data, for TIFF files without the blocks that Pillow cannot write there."""
    data = Image.Exif()
    data[MAKER], data[ORIENTATION] = "Maker", orientation
    if not blocks:
        return data
    data[CAMERA], data[PLACE] = {EXPOSURE: 0.01}, {1: "N"}
    return data


RGB = Image.fromarray(noise(3))
GRAY16 = Image.fromarray(noise(1, np.uint16)[..., 0])
CMYK = Image.fromarray(noise(4), "CMYK")

#: Name: image, how Pillow saves it, and mode and bits as read.
FILES: dict[str, tuple[Image.Image, dict[str, Any], str, int]] = {
    "rgb.png": (RGB, {}, "RGB", 8),
    "gray.png": (RGB.convert("L"), {}, "L", 8),
    "gray_alpha.png": (RGB.convert("LA"), {}, "L", 8),
    "rgba.png": (Image.fromarray(noise(4)), {}, "RGB", 8),
    "palette.png": (RGB.quantize(40), {}, "P", 8),
    "palette_clear.png": (RGB.quantize(40), {"transparency": 3}, "P", 8),
    "palette_alpha.png": (RGB.quantize(40), {"transparency": bytes(range(0, 200, 5))}, "P", 8),
    "colour_key.png": (RGB, {"transparency": RGB.getpixel((3, 3))}, "RGB", 8),
    "bilevel.png": (RGB.convert("1"), {}, "1", 1),
    "gray16.png": (GRAY16, {}, "L", 16),
    "rgb.jpg": (smooth(), {"quality": 90, "subsampling": 2}, "RGB", 8),
    "gray.jpg": (smooth().convert("L"), {}, "L", 8),
    "progressive.jpg": (smooth(), {"progressive": True}, "RGB", 8),
    "cmyk.jpg": (smooth().convert("CMYK"), {}, "CMYK", 8),
    "rgb.tif": (RGB, {}, "RGB", 8),
    "lzw.tif": (RGB, {"compression": "tiff_lzw"}, "RGB", 8),
    "bilevel.tif": (RGB.convert("1"), {"compression": "group4"}, "1", 1),
    "palette.tif": (RGB.quantize(40), {}, "P", 8),
    "cmyk.tif": (CMYK, {}, "CMYK", 8),
    "gray_alpha.tif": (RGB.convert("LA"), {}, "L", 8),
    "gray16.tif": (GRAY16, {}, "L", 16),
    "lossless.webp": (RGB, {"lossless": True}, "RGB", 8),
    "lossy.webp": (smooth().convert("RGBA"), {"quality": 90}, "RGB", 8),
    "rgb.bmp": (RGB, {}, "RGB", 8),
    "palette.gif": (RGB.quantize(200), {}, "P", 8),
    "clear.gif": (RGB.quantize(200), {"transparency": 5}, "P", 8),
}
LOSSY = {"rgb.jpg", "gray.jpg", "progressive.jpg", "cmyk.jpg", "lossy.webp"}


def saved(folder: Path, name: str) -> Path:
    """A file as another program would write it, with all the metadata that its format holds."""
    image, options, _, _ = FILES[name]
    options = dict(options)
    if not name.endswith((".bmp", ".gif")):
        data = exif(blocks=not name.endswith(".tif"))
        options |= {"icc_profile": PROFILE, "exif": data}
    if not name.endswith((".gif", ".webp")):
        options["dpi"] = (300, 150)
    image.save(folder / name, **options)
    return folder / name


def shown(path: Path) -> NDArray[np.uint8]:
    """What a viewer shows: (H, W, 4)."""
    with Image.open(path) as image:
        if image.mode == "I;16":
            gray = (np.asarray(image) >> 8).astype(np.uint8)
            return np.asarray(Image.fromarray(gray).convert("RGBA"))
        return np.asarray(image.convert("RGBA"))


@pytest.mark.parametrize("name", FILES)
def test_what_went_in_comes_out(name: str, tmp_path: Path) -> None:
    source, target = saved(tmp_path, name), tmp_path / f"again_{name}"
    picture = read_picture(source)
    _, _, mode, bits = FILES[name]
    assert (picture.mode, picture.bits, picture.height, picture.width) == (mode, bits, 20, 31)
    picture.save(target)
    with Image.open(source) as before, Image.open(target) as after:
        # A colour key has become an alpha channel.
        assert after.mode == ("RGBA" if name == "colour_key.png" else before.mode)
        assert after.format == before.format
        assert after.info.get("icc_profile") == before.info.get("icc_profile")
        if "dpi" in before.info:
            assert after.info["dpi"] == pytest.approx(before.info["dpi"], rel=1e-4)
        for number in (MAKER, ORIENTATION):
            assert after.getexif().get(number) == before.getexif().get(number)
        for block in (CAMERA, PLACE):
            assert dict(after.getexif().get_ifd(block)) == dict(before.getexif().get_ifd(block))
    np.testing.assert_allclose(shown(target), shown(source), atol=6 if name in LOSSY else 0)
    again = read_picture(target)
    assert again.encoding.keys() == picture.encoding.keys()
    if name not in LOSSY:
        np.testing.assert_array_equal(again.pixels, picture.pixels)
        np.testing.assert_array_equal(again.alpha, picture.alpha)


def test_the_encoders_settings_are_kept(tmp_path: Path) -> None:
    for name, setting in (
        ("rgb.jpg", ("subsampling", 2)),
        ("progressive.jpg", ("progressive", True)),
        ("lossless.webp", ("lossless", True)),
        ("lossy.webp", ("lossless", False)),
        ("bilevel.tif", ("compression", "group4")),
        ("rgb.tif", ("compression", "raw")),
    ):
        picture = read_picture(saved(tmp_path, name))
        picture.save(tmp_path / name)
        again = read_picture(tmp_path / name)
        assert again.encoding[setting[0]] == picture.encoding[setting[0]] == setting[1], name


# ---- sixteen bits ------------------------------------------------------------------------------


def unfiltered(file: Path) -> NDArray[np.uint16]:
    """A 16-bit PNG decoded as its specification says, byte by byte."""
    data, packed = file.read_bytes()[8:], b""
    while data:
        (size,) = struct.unpack(">I", data[:4])
        kind, body = data[4:8], data[8 : 8 + size]
        assert zlib.crc32(kind + body) == struct.unpack(">I", data[8 + size : 12 + size])[0]
        if kind == b"IHDR":
            width, height, bits, colour = struct.unpack(">IIBB", body[:10])
            assert bits == 16
            channels = {0: 1, 4: 2, 2: 3, 6: 4}[colour]
        packed += body if kind == b"IDAT" else b""
        data = data[12 + size :]
    step, stride = 2 * channels, 2 * channels * width
    rows, raw, above = [], zlib.decompress(packed), bytes(stride)
    for y in range(height):
        kind, row = raw[y * (stride + 1)], bytearray(raw[y * (stride + 1) + 1 :][:stride])
        for x in range(stride):
            a = row[x - step] if x >= step else 0
            b, c = above[x], above[x - step] if x >= step else 0
            near = min((a, b, c), key=lambda v, p=a + b - c: abs(p - v))
            row[x] = (row[x] + (0, a, b, (a + b) // 2, near)[kind]) % 256
        rows.append(bytes(row))
        above = rows[-1]
    samples = np.frombuffer(b"".join(rows), ">u2").reshape(height, width, channels)
    return samples.astype(np.uint16)


def deep_picture(channels: int) -> Picture:
    samples = noise(channels, np.uint16)
    # A smooth half, so that every kind of filter is chosen somewhere.
    samples[10:] = (np.mgrid[0:10, 0:WIDTH].sum(0) * 997 % 65536)[..., None]
    alpha = samples[..., -1] if channels in (2, 4) else None
    pixels = samples if alpha is None else samples[..., :-1]
    return Picture(
        pixels,
        "RGB" if channels > 2 else "L",
        alpha,
        icc_profile=PROFILE,
        exif=exif().tobytes(),
        dpi=(300.0, 150.0),
    )


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_sixteen_bits_go_out_and_come_in(channels: int, ending: str, tmp_path: Path) -> None:
    picture, path = deep_picture(channels), tmp_path / f"deep.{ending}"
    write_picture(picture, path)
    again = read_picture(path)
    assert again.bits == 16
    # 16-bit gray with transparency is written as RGB: TIFF readers do not know it.
    np.testing.assert_array_equal(again.pixels, np.broadcast_to(picture.pixels, again.pixels.shape))
    np.testing.assert_array_equal(again.alpha, picture.alpha)
    assert again.icc_profile == PROFILE
    assert again.dpi == pytest.approx((300, 150), rel=1e-4)
    assert again.exif == picture.exif
    if ending == "png":
        planes = [picture.pixels] if picture.alpha is None else [picture.pixels, picture.alpha]
        np.testing.assert_array_equal(unfiltered(path), np.dstack(planes))


@pytest.mark.parametrize("compression", ["raw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_tiff_files_are_what_another_reader_reads(
    mode: str, compression: str, tmp_path: Path
) -> None:
    picture = from_pil(CMYK if mode == "CMYK" else RGB.convert(mode))
    picture = dataclasses.replace(picture, encoding={"compression": compression}, exif=b"")
    for one in (picture, deep_picture(3)):
        write_picture(dataclasses.replace(one, exif=None), tmp_path / "file.tif")
        read = tifffile.imread(tmp_path / "file.tif")
        if one.mode == "CMYK":
            np.testing.assert_array_equal(read, np.asarray(CMYK))
        else:
            np.testing.assert_array_equal(read.reshape(one.pixels.shape), one.pixels)


def test_large_sixteen_bit_pictures_take_many_strips(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (900, 700, 3), dtype=np.uint16)
    for ending in ("png", "tif"):
        write_picture(Picture(samples, "RGB"), tmp_path / f"large.{ending}")
        np.testing.assert_array_equal(read_picture(tmp_path / f"large.{ending}").pixels, samples)


def test_a_sixteen_bit_colour_key_is_transparency(tmp_path: Path) -> None:
    path = tmp_path / "key.png"
    picture = dataclasses.replace(deep_picture(3), icc_profile=None, exif=None, dpi=None)
    write_picture(picture, path)
    data = path.read_bytes()
    key = b"tRNS" + picture.pixels[4, 7].astype(">u2").tobytes()
    place = data.index(b"IDAT") - 4
    chunk = struct.pack(">I", 6) + key + struct.pack(">I", zlib.crc32(key))
    path.write_bytes(data[:place] + chunk + data[place:])
    alpha = read_picture(path).alpha
    assert alpha is not None
    assert alpha[4, 7] == 0
    assert np.count_nonzero(alpha == 65535) == alpha.size - 1


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_sixteen_bits_with_white_at_zero_are_not_a_negative(
    compression: str | None, tmp_path: Path
) -> None:
    ink, path = noise(1, np.uint16)[..., 0], tmp_path / "ink.tif"
    tifffile.imwrite(path, ink, photometric="miniswhite", compression=compression)
    picture = read_picture(path)
    np.testing.assert_array_equal(picture.pixels[..., 0], 65535 - ink)
    picture.save(path)
    np.testing.assert_array_equal(tifffile.imread(path), 65535 - ink)


@pytest.mark.parametrize("compression", [None, "zlib"])
def test_colours_one_after_the_other_are_right_or_refused(
    compression: str | None, tmp_path: Path
) -> None:
    path = tmp_path / "planes.tif"
    arguments = {"photometric": "rgb", "planarconfig": "separate", "compression": compression}
    tifffile.imwrite(path, noise(3).transpose(2, 0, 1), **arguments)
    np.testing.assert_array_equal(read_picture(path).pixels, noise(3))
    tifffile.imwrite(path, noise(3, np.uint16).transpose(2, 0, 1), **arguments)
    with pytest.raises(PictureError, match="stored one colour after the other"):
        read_picture(path)


# ---- orientation and metadata ------------------------------------------------------------------

TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda a: a,
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a, 2).swapaxes(0, 1),
    8: np.rot90,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize(
    "kind", ["rgb.png", "rgba.png", "rgb.tif", "cmyk.tif", "gray16.tif", "deep"]
)
def test_the_orientation_is_applied_and_reset(kind: str, orientation: int, tmp_path: Path) -> None:
    path = tmp_path / kind
    if kind == "deep":
        path = tmp_path / "deep.png"
        picture = deep_picture(4)
        upright = np.dstack([picture.pixels, picture.alpha])
        turned = dataclasses.replace(picture, exif=exif(orientation).tobytes())
        write_picture(turned, path)
    else:
        image = FILES[kind][0]
        image.save(path, exif=exif(orientation, kind.endswith(".png")), dpi=(300, 150))
        upright = np.asarray(image)
    back = read_picture(path)
    expected = TURNS[orientation](upright)
    if kind == "cmyk.tif":
        back.save(tmp_path / "again.tif")
        with Image.open(tmp_path / "again.tif") as again:
            np.testing.assert_array_equal(np.asarray(again), expected)
            assert again.getexif()[ORIENTATION] == 1
    else:
        planes = [back.pixels] if back.alpha is None else [back.pixels, back.alpha]
        np.testing.assert_array_equal(np.dstack(planes).reshape(expected.shape), expected)
    assert back.dpi == pytest.approx((150, 300) if orientation > 4 else (300, 150), rel=1e-4)
    assert back.exif is not None
    data = Image.Exif()
    data.load(back.exif)
    assert data[ORIENTATION] == 1


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_sides_that_the_camera_wrote_are_those_of_the_picture(
    orientation: int, tmp_path: Path
) -> None:
    data, (columns, rows) = exif(orientation), (0xA002, 0xA003)
    data[CAMERA] = {EXPOSURE: 0.01, columns: WIDTH, rows: HEIGHT}
    smooth().save(tmp_path / "a.jpg", exif=data)
    read_picture(tmp_path / "a.jpg").save(tmp_path / "b.jpg")
    with Image.open(tmp_path / "b.jpg") as image:
        block = image.getexif().get_ifd(CAMERA)
        assert (block[columns], block[rows]) == image.size


@pytest.mark.parametrize("name", ["rgb.png", "palette.png", "gray.png", "deep.png"])
def test_chunks_that_say_what_colours_mean_are_kept(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name == "deep.png":
        write_picture(dataclasses.replace(deep_picture(3), icc_profile=None), path)
    else:
        FILES[name][0].save(path)
    linear = struct.pack(">I4sI", 4, b"gAMA", 100_000)
    hdr = struct.pack(">I4s4B", 4, b"cICP", 9, 16, 0, 1)
    added = b"".join(one + struct.pack(">I", zlib.crc32(one[4:])) for one in (linear, hdr))
    data = path.read_bytes()
    path.write_bytes(data[:33] + added + data[33:])
    picture = read_picture(path)
    picture.save(tmp_path / "again.png")
    again = (tmp_path / "again.png").read_bytes()
    for one in (linear, hdr):
        assert again.count(one) == 1
        assert again.index(one) < again.index(b"IDAT")
    with Image.open(tmp_path / "again.png") as image:
        assert image.info["gamma"] == 1
    np.testing.assert_array_equal(read_picture(tmp_path / "again.png").pixels, picture.pixels)
    picture.save(tmp_path / "again.tif")  # which knows no such thing


def test_a_profile_of_grays_does_not_come_into_a_file_of_colours(tmp_path: Path) -> None:
    profile = PROFILE[:16] + b"GRAY" + PROFILE[20:]
    picture = dataclasses.replace(from_pil(RGB.convert("L")), icc_profile=profile)
    deep = dataclasses.replace(deep_picture(2), icc_profile=profile)
    for one, name, kept in (
        (picture, "a.png", profile),
        (picture, "a.jpg", profile),
        (picture, "a.webp", None),
        (deep, "b.png", profile),
        (deep, "b.tif", None),
    ):
        one.save(tmp_path / name)
        assert read_picture(tmp_path / name).icc_profile == kept, name


def test_a_photograph_keeps_its_camera_and_place_in_every_format(tmp_path: Path) -> None:
    smooth().save(tmp_path / "photo.jpg", exif=exif())
    picture = read_picture(tmp_path / "photo.jpg")
    for ending in ("jpg", "png", "tif", "webp"):
        picture.save(tmp_path / f"photo_again.{ending}")
        with Image.open(tmp_path / f"photo_again.{ending}") as image:
            data = image.getexif()
            assert data[MAKER] == "Maker"
            assert dict(data.get_ifd(CAMERA)) == {EXPOSURE: 0.01}
            assert dict(data.get_ifd(PLACE)) == {1: "N"}


def test_broken_metadata_does_not_stop_a_picture(tmp_path: Path) -> None:
    blocks = (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0junk", b"Exif\0\0")
    for number, block in enumerate(blocks):
        path = tmp_path / f"{number}.jpg"
        smooth().save(path, exif=block, icc_profile=b"no profile", dpi=(72, 72))
        read_picture(path).save(tmp_path / "again.jpg")


def xmp(orientation: int = 1, width: int = WIDTH, height: int = HEIGHT, more: str = "") -> bytes:
    """What an editor writes: a rating, and sides and orientation in both of XMP's notations."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description xmp:Rating="4" '
        f'tiff:ImageWidth="{width}" tiff:ImageLength="{height}" tiff:Orientation="{orientation}">'
        f"<tiff:Orientation>{orientation}</tiff:Orientation><dc:title>Schnee in Köln{more}"
        "</dc:title></rdf:Description></x:xmpmeta>"
    ).encode()


def with_xmp(path: Path, image: Image.Image, data: bytes) -> Path:
    """A file with XMP data where its format keeps them."""
    options: dict[str, Any] = {"xmp": data}
    if path.suffix == ".png":
        options = {"pnginfo": PngImagePlugin.PngInfo()}
        options["pnginfo"].add_itxt("XML:com.adobe.xmp", data.decode())
    elif path.suffix == ".tif":
        options = {"tiffinfo": {700: data}}
    image.save(path, **options)
    return path


@pytest.mark.parametrize("ending", ["png", "jpg", "tif", "webp"])
def test_what_editors_wrote_comes_through_into_every_format(ending: str, tmp_path: Path) -> None:
    source = with_xmp(tmp_path / f"a.{ending}", smooth(), xmp())
    picture = read_picture(source)
    assert picture.xmp == xmp()
    for target in ("png", "jpg", "tif", "webp"):
        picture.save(tmp_path / f"again.{target}")
        with Image.open(tmp_path / f"again.{target}") as image:
            assert image.info["xmp"] == xmp(), target
    assert picture.to_pil().info["xmp"] == xmp()


@pytest.mark.parametrize(
    "name", ["palette.png", "palette.tif", "bilevel.tif", "deep.png", "deep.tif"]
)
def test_what_editors_wrote_comes_through_every_writer(name: str, tmp_path: Path) -> None:
    picture = deep_picture(3) if name.startswith("deep") else read_picture(saved(tmp_path, name))
    dataclasses.replace(picture, xmp=xmp()).save(tmp_path / name)
    again = read_picture(tmp_path / name)
    assert again.xmp == xmp()
    np.testing.assert_array_equal(again.pixels, picture.pixels)


@pytest.mark.parametrize(("orientation", "turned"), [(3, False), (6, True)])
def test_what_editors_wrote_speaks_of_the_upright_picture(
    orientation: int, turned: bool, tmp_path: Path
) -> None:
    data = xmp(orientation)
    for name, also in (("a.jpg", exif(orientation)), ("b.jpg", None)):  # Pillow looks in both
        options = {} if also is None else {"exif": also}
        smooth().save(tmp_path / name, xmp=data, **options)
        picture = read_picture(tmp_path / name)
        assert (picture.width, picture.height) == ((HEIGHT, WIDTH) if turned else (WIDTH, HEIGHT))
        assert picture.xmp is not None
        assert picture.xmp.count(b'tiff:Orientation="1"') == 1
        assert picture.xmp.count(b"<tiff:Orientation>1<") == 1
        first, second = (HEIGHT, WIDTH)[:: 1 if turned else -1]
        for side, pixels in (("ImageWidth", first), ("ImageLength", second)):
            assert f'tiff:{side}="{pixels}"'.encode() in picture.xmp


def test_more_xmp_than_jpeg_holds_is_left_out_of_it_alone(tmp_path: Path) -> None:
    picture = dataclasses.replace(from_pil(smooth()), xmp=xmp(more="x" * 70_000))
    picture.save(tmp_path / "a.jpg")
    assert read_picture(tmp_path / "a.jpg").xmp is None
    picture.save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").xmp == picture.xmp


# ---- other formats than the file came in -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "ending", "mode"),
    [
        ("bilevel.png", "jpg", "L"),
        ("palette.png", "jpg", "RGB"),
        ("gray16.png", "jpg", "L"),
        ("gray16.png", "webp", "RGB"),
        ("cmyk.tif", "png", "RGB"),
        ("cmyk.tif", "jpg", "CMYK"),
        ("rgb.png", "gif", "P"),
        ("rgba.png", "webp", "RGBA"),
        ("palette_clear.png", "gif", "P"),
        ("palette_clear.png", "tif", "RGBA"),
    ],
)
def test_a_format_that_lacks_a_mode_gets_the_nearest(
    name: str, ending: str, mode: str, tmp_path: Path
) -> None:
    picture = read_picture(saved(tmp_path, name))
    target = tmp_path / f"other.{ending}"
    picture.save(target)
    with Image.open(target) as image:
        assert image.mode == mode
        if name == "cmyk.tif" and ending == "png":
            assert "icc_profile" not in image.info
    assert read_picture(target).pixels.shape[:2] == (HEIGHT, WIDTH)


def test_jpeg_refuses_transparency_but_not_an_opaque_alpha(tmp_path: Path) -> None:
    picture = from_pil(Image.fromarray(noise(4)))
    with pytest.raises(PictureError, match="JPEG has no transparency"):
        picture.save(tmp_path / "no.jpg")
    assert not (tmp_path / "no.jpg").exists()
    opaque = dataclasses.replace(picture, alpha=np.full((HEIGHT, WIDTH), 255, np.uint8))
    opaque.save(tmp_path / "yes.jpg")


def test_more_colours_than_a_palette_holds_are_chosen_and_dithered(tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:64, 0:64]
    pixels = np.stack([rows * 4, columns * 4, 255 - rows * 4], axis=2).astype(np.uint8)
    clear = np.where(rows < 8, 0, 255).astype(np.uint8)
    soft = (rows * 4).astype(np.uint8)
    for alpha in (None, clear, soft):
        Picture(pixels, "P", alpha).save(tmp_path / "palette.png")
        back = read_picture(tmp_path / "palette.png")
        assert back.mode == "P"
        seen = np.ones((64, 64), bool) if alpha is None else alpha > 128
        assert np.abs(back.pixels[seen].astype(int) - pixels[seen]).mean() < 12
        if alpha is clear:
            np.testing.assert_array_equal(back.alpha, clear)


def test_dark_inks_stay_what_they_were() -> None:
    cmyk = np.random.default_rng(0).integers(0, 256, (50, 50, 4), dtype=np.uint8)
    back = np.asarray(from_pil(Image.fromarray(cmyk, "CMYK")).to_pil())
    np.testing.assert_array_equal(back[..., 3], cmyk[..., 3])
    np.testing.assert_array_equal(back, cmyk)


def test_brighter_light_takes_black_ink_away() -> None:
    dark = from_pil(Image.fromarray(np.full((2, 2, 4), 200, np.uint8), "CMYK"))
    bright = np.asarray(dark.with_pixels(np.full_like(dark.pixels, 65535)).to_pil())
    np.testing.assert_array_equal(bright, 0)


def test_pictures_side_by_side() -> None:
    left, right = (from_pil(Image.fromarray(noise(4) + np.uint8(i))) for i in (0, 1))
    both = side_by_side(left, right)
    assert both.pixels.shape == (HEIGHT, 2 * WIDTH, 3)
    np.testing.assert_array_equal(both.pixels[:, WIDTH:], right.pixels)
    assert both.alpha is not None
    assert both.alpha.shape == (HEIGHT, 2 * WIDTH)
    with pytest.raises(ValueError, match="one mode"):
        side_by_side(left, from_pil(RGB.convert("L")))


# ---- bad files ---------------------------------------------------------------------------------


def no_picture(folder: Path) -> dict[str, Path]:
    """Files that are no pictures, by the words that the error must hold."""
    names = ["empty.png", "text.png", "header.png", "short.png", "short.jpg", "short.tif"]
    names += ["many.gif", "floats.tif", "large.png", "bits.png", "planes.tif", "tall.webp"]
    paths = {name: folder / name for name in names}
    paths["empty.png"].write_bytes(b"")
    paths["text.png"].write_text("this is no picture\n")
    RGB.resize((300, 300)).save(folder / "whole.png")
    RGB.resize((300, 300)).save(folder / "whole.jpg")
    RGB.resize((300, 300)).save(folder / "whole.tif", compression="tiff_lzw")
    RGB.resize((300, 300)).save(folder / "whole.webp")
    for ending in ("png", "jpg", "tif"):
        data = (folder / f"whole.{ending}").read_bytes()
        paths[f"short.{ending}"].write_bytes(data[: len(data) // 2])
    paths["tall.webp"].write_bytes((folder / "whole.webp").read_bytes()[:200])
    paths["header.png"].write_bytes((folder / "whole.png").read_bytes()[:30])
    frames = [RGB.quantize(8), Image.fromarray(noise(3) + np.uint8(9)).quantize(8)]
    frames[0].save(paths["many.gif"], save_all=True, append_images=frames[1:])
    Image.new("F", (5, 5)).save(paths["floats.tif"])
    data = bytearray((folder / "whole.png").read_bytes())
    data[16:24] = struct.pack(">II", 20000, 10000)
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    paths["large.png"].write_bytes(data)
    paths["bits.png"].write_bytes(bytes(reversed(data)))
    paths["planes.tif"].write_bytes(b"II*\0\xff\xff\xff\xff")
    return paths


WORDS = {
    "empty.png": "is empty",
    "text.png": "is not a picture in one of PNG, JPEG",
    "header.png": "not a picture|cannot be decoded",
    "short.png": "cannot be decoded",
    "short.jpg": "cannot be decoded: .*truncated",
    "short.tif": "cannot be decoded|not a picture",
    "many.gif": "holds 2 frames; split it into files of one picture",
    "floats.tif": "is of a kind|samples are of a kind",
    "large.png": r"20000 x 10000 pixels, more than the limit of 150,000,000; .*CLIPWEATHER_MAX",
    "bits.png": "not a picture",
    "planes.tif": "not a picture|cannot be decoded",
    "tall.webp": "cannot be decoded|not a picture",
}


@pytest.mark.parametrize("name", WORDS)
def test_a_bad_file_gives_one_error_that_names_it(name: str, tmp_path: Path) -> None:
    path = no_picture(tmp_path)[name]
    with pytest.raises(PictureError, match=WORDS[name]) as caught:
        read_picture(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.path == path
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("name", ["rgb.png", "rgb.jpg", "lzw.tif", "lossy.webp", "palette.gif"])
def test_no_damage_gives_another_error(name: str, tmp_path: Path) -> None:
    path = saved(tmp_path, name)
    data = bytearray(path.read_bytes())
    generator = np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(data)
        for place in generator.integers(0, len(data), 8):
            damaged[place] = generator.integers(256)
        path.write_bytes(damaged[: generator.integers(1, len(data) + 1)])
        with contextlib.suppress(PictureError):
            assert read_picture(path, max_pixels=10**6).pixels.size > 0


def test_what_is_no_file_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="there is no such file"):
        read_picture(tmp_path / "nothing.png")
    with pytest.raises(PictureError, match="is not a file"):
        read_picture(tmp_path)


def test_the_limit_of_pixels_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "rgb.png")
    for name in ("rgb.png", "rgb.tif"):
        path = saved(tmp_path, name)
        with pytest.raises(PictureError, match="more than the limit of 600"):
            read_picture(path, max_pixels=600)
        monkeypatch.setenv("CLIPWEATHER_MAX_PIXELS", "619")
        with pytest.raises(PictureError, match="more than the limit of 619"):
            read_picture(path)
        monkeypatch.setenv("CLIPWEATHER_MAX_PIXELS", "620")
        # Pillow's own limit, a third of that, does not count, and stays what it is.
        monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 200)
        assert read_picture(path).pixels.shape == (HEIGHT, WIDTH, 3)
        assert PIL.Image.MAX_IMAGE_PIXELS == 200
    monkeypatch.setenv("CLIPWEATHER_MAX_PIXELS", "many")
    with pytest.raises(PictureError, match="must be a number, got 'many'"):
        read_picture(path)


def test_the_limit_of_pixels_is_not_read_while_another_thread_has_it_lifted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 200)
    lifted, lowered = threading.Event(), threading.Event()
    seen: list[int | None] = []

    class Large:
        format, width, height = "TIFF", 20, 20

        def load(self) -> None:
            assert lowered.wait(20)
            seen.append(PIL.Image.MAX_IMAGE_PIXELS)

    def load() -> None:
        assert lifted.wait(20)
        images._load(Large())  # type: ignore[arg-type]

    thread = threading.Thread(target=load)
    thread.start()
    with images._unlimited():
        lifted.set()
        time.sleep(0.05)
    lowered.set()
    thread.join(20)
    assert seen == [None]


def test_pages_are_refused_by_their_number_and_smaller_copies_are_not_pages(tmp_path: Path) -> None:
    path = tmp_path / "pages.tif"
    first, second = noise(3), np.ascontiguousarray(noise(3)[::2, ::2])
    for kind, several in ((0, True), (1, False)):
        with tifffile.TiffWriter(path) as file:
            file.write(first, photometric="rgb")
            file.write(second, photometric="rgb", subfiletype=kind)
        if several:
            with pytest.raises(PictureError, match="holds 2 pages; split it into files of one"):
                read_picture(path)
        else:
            np.testing.assert_array_equal(read_picture(path).pixels, first)
        np.testing.assert_array_equal(read_picture(path, frame=1).pixels, second)


def test_what_lies_behind_a_jpeg_is_named(tmp_path: Path) -> None:
    more = [smooth().rotate(90), smooth().rotate(180)]
    smooth().save(tmp_path / "a.jpg", "MPO", save_all=True, append_images=more)
    picture = read_picture(tmp_path / "a.jpg")
    assert (picture.format, picture.width) == ("JPEG", WIDTH)
    assert picture.left_out is not None
    assert picture.left_out.startswith("2 more pictures behind the first")
    smooth().save(tmp_path / "b.jpg")
    assert read_picture(tmp_path / "b.jpg").left_out is None


def test_a_frame_of_several_can_be_taken(tmp_path: Path) -> None:
    path = no_picture(tmp_path)["many.gif"]
    first, second = read_picture(path, frame=0), read_picture(path, frame=1)
    assert (first.pixels != second.pixels).any()
    with pytest.raises(PictureError, match="has no frame 2"):
        read_picture(path, frame=2)


# ---- writing -----------------------------------------------------------------------------------


def test_a_file_that_cannot_be_written_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture, path = from_pil(RGB), tmp_path / "file.png"
    picture.save(path)
    before = path.read_bytes()

    def failing(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(images, "_as_image", failing)
    with pytest.raises(PictureError, match=r"file\.png: cannot be written: No space left"):
        picture.save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["file.png"]


def test_wrong_targets_are_named(tmp_path: Path) -> None:
    picture = from_pil(RGB)
    with pytest.raises(PictureError, match=r"'\.xyz' is none of \.png"):
        picture.save(tmp_path / "file.xyz")
    with pytest.raises(PictureError, match="there is no folder"):
        picture.save(tmp_path / "missing" / "file.png")
    with pytest.raises(PictureError, match="cannot be written"):
        picture.save(tmp_path)
    with pytest.raises(ValueError, match="quality must be 1 to 100"):
        picture.save(tmp_path / "file.jpg", quality=0)
    with pytest.raises(PictureError, match="cannot be written"):
        Picture(np.zeros((1, 20000, 3), np.uint8), "RGB").save(tmp_path / "file.webp")
    assert list(tmp_path.iterdir()) == []


def test_a_symbolic_link_is_replaced_and_a_name_may_hold_anything(tmp_path: Path) -> None:
    original, link = tmp_path / "original.png", tmp_path / "a link\nand a line.png"
    from_pil(RGB).save(original)
    link.symlink_to(original)
    shutil.copy(original, tmp_path / "copy.png")
    from_pil(RGB.convert("L")).save(link)
    assert not link.is_symlink()
    assert read_picture(link).mode == "L"
    assert original.read_bytes() == (tmp_path / "copy.png").read_bytes()
