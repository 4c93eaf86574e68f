"""Picture files: what went in comes out, and every bad file gives one kind of error.

Pillow decodes and encodes (:mod:`clipweather_fast.restore.deep` adds 16 bits). It is imported in
functions: restoring tensors needs none of this.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clipweather_fast import env
from clipweather_fast.restore import deep, metadata
from clipweather_fast.restore.aside import written_aside
from clipweather_fast.restore.encoders import write_png, write_tiff
from clipweather_fast.restore.inks import inks, light
from clipweather_fast.restore.palettes import in_palette
from clipweather_fast.restore.picture import Mode, Picture, PictureError, Samples, in_eight_bits

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["SUFFIXES", "from_pil", "read_picture", "side_by_side", "to_pil", "write_picture"]

#: Formats by the endings of file names.
SUFFIXES = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jpe": "JPEG",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
}
#: What may be opened: a short list, since Pillow knows formats that run other programs.
READ = tuple(dict.fromkeys(SUFFIXES.values()))
#: Modes each format holds, without transparency and with it.
HELD: dict[str, tuple[set[str], set[str]]] = {
    "PNG": ({"1", "L", "P", "RGB"}, {"L", "P", "RGB"}),
    "JPEG": ({"L", "RGB", "CMYK"}, set()),
    "TIFF": ({"1", "L", "P", "RGB", "CMYK"}, {"L", "RGB"}),
    "WEBP": ({"RGB"}, {"RGB"}),
    "BMP": ({"1", "L", "P", "RGB"}, set()),
    "GIF": ({"1", "L", "P"}, {"P"}),
}
#: What a mode becomes in a format that does not hold it: the first that it does.
INSTEAD: dict[str, tuple[Mode, ...]] = {
    "1": ("L", "P", "RGB"),
    "L": ("P", "RGB"),
    "P": ("RGB",),
    "RGB": ("P",),
    "CMYK": ("RGB", "P"),
}
DEEP = ("PNG", "TIFF")
#: TIFF's word for what a page is, and its bit for a smaller copy of another.
SUBFILE_TYPE, SMALLER_COPY = 254, 1


def read_picture(
    path: str | os.PathLike[str], *, frame: int | None = None, max_pixels: int | None = None
) -> Picture:
    """Decodes a PNG, JPEG, TIFF, WebP, BMP or GIF file, told by its content, not by its name.

    The EXIF orientation is applied. Colour keys and palettes with transparency become ``alpha``.
    Kept for writing: ICC profile, the EXIF data that describes the photograph (camera, time, place,
    author; not its thumbnail), XMP data, resolution, and the encoder's settings that can be seen.
    Smaller copies of the picture in a TIFF file, and what lies behind it in a JPEG file, are left
    out; ``left_out`` names the latter.

    Args:
        path: the file.
        frame: which picture of a file that holds several; None: such a file is refused.
        max_pixels: refuse more than this, before any memory is taken for them. None: the
            environment variable ``CLIPWEATHER_MAX_PIXELS``, or 150 million.

    Raises:
        PictureError: there is no such file, it is no picture of those formats, it is damaged, it
            has too many pixels, several frames, or samples that are neither 1, 8 nor 16 bits.
    """
    path = Path(path)
    with header(path, max_pixels) as image, in_words(path, "cannot be decoded"):
        _seek(image, path, frame)
        return _decoded(image, path, frame or 0)


@contextmanager
def header(path: Path, max_pixels: int | None = None) -> Iterator[Image]:
    """A picture file opened, its header read and its size allowed, nothing decoded yet.

    For :func:`read_picture`, and for readers that need only a part of the pixels; they decode
    within :func:`in_words`.
    """
    limit = _limit(path, max_pixels)
    with ExitStack() as stack:
        with in_words(path, "cannot be decoded"):
            if not path.exists():
                raise PictureError(path, "there is no such file")
            if not path.is_file():
                raise PictureError(path, "is not a file")
            if path.stat().st_size == 0:
                raise PictureError(path, "is empty")
            image = stack.enter_context(_opened(path))
            if image.width * image.height > limit:
                raise PictureError(
                    path,
                    f"has {image.width} x {image.height} pixels, more than the limit of {limit:,}; "
                    "if you trust it, raise CLIPWEATHER_MAX_PIXELS or max_pixels",
                )
        yield image


def write_picture(picture: Picture, path: str | os.PathLike[str], quality: int = 95) -> None:
    """Encodes a picture into a file that appears whole or not at all.

    The ending of the name says the format; without one it is ``picture.format``. Mode and depth
    are those of the picture where the format holds them. Else black-and-white becomes gray, gray
    RGB, CMYK RGB, 16 bits are rounded to 8, and GIF takes the best 256 colours.

    Args:
        picture: what to write.
        path: where; its folder must exist. What is there is replaced.
        quality: of JPEG and lossy WebP, 1 to 100.

    Raises:
        PictureError: the ending is unknown, the format cannot hold the transparency or the size, or
            the file cannot be written.
    """
    path = Path(path)
    format = SUFFIXES.get(path.suffix.lower()) if path.suffix else picture.format
    if format is None:
        known = ", ".join(SUFFIXES)
        raise PictureError(path, f"the ending {path.suffix!r} is none of {known}")
    if not 1 <= quality <= 100:
        raise ValueError(f"write_picture: quality must be 1 to 100, got {quality}")
    if not path.parent.is_dir():
        raise PictureError(path, f"there is no folder {str(path.parent)!r}")
    with in_words(path, "cannot be written"):
        fitted = _fitted(picture, format, path)
        with written_aside(path) as file:
            if format == "PNG" and fitted.bits == 16:
                write_png(fitted, file)
            elif format == "TIFF" and fitted.mode in ("L", "RGB", "CMYK"):
                write_tiff(fitted, file)
            else:
                image = _as_image(fitted)
                image.save(file, format, **metadata.options(fitted, format, quality))


def from_pil(image: Image) -> Picture:
    """An image of Pillow's as a picture. Its EXIF orientation is passed on, not applied.

    Raises:
        ValueError: its mode is not one of 1, L, LA, P, PA, RGB, RGBA, CMYK, I;16 or convertible.
    """
    if image.mode in ("I", "F"):
        raise ValueError(
            f"an image of mode {image.mode} has 32-bit samples; 8 and 16 bits are taken"
        )
    pixels, mode, alpha, cmyk = _split(image)
    kept = metadata.read(image) | {"exif": image.info.get("exif")}
    return Picture(pixels, mode, alpha, cmyk, **kept)


def to_pil(picture: Picture) -> Image:
    """See :meth:`Picture.to_pil`."""
    from PIL import Image

    if picture.bits == 16:
        if picture.pixels.shape[2] != 1 or picture.alpha is not None:
            raise ValueError(
                "Pillow has no images with 16-bit colours or with 16 bits and transparency; take "
                "picture.pixels, or picture.save(path)"
            )
        image = Image.fromarray(np.ascontiguousarray(picture.pixels[..., 0]))
    else:
        image = _as_image(picture)
    for name in ("icc_profile", "exif", "xmp", "dpi"):
        if (value := getattr(picture, name)) is not None:
            image.info[name] = value
    return image


def side_by_side(left: Picture, right: Picture) -> Picture:
    """Two pictures of one height, mode and depth in one, as before and after.

    Raises:
        ValueError: they differ in more than their pixels and width.
    """
    for name in ("height", "mode", "bits"):
        if getattr(left, name) != getattr(right, name):
            raise ValueError(
                f"side_by_side: the pictures must have one {name}, got {getattr(left, name)} and "
                f"{getattr(right, name)}"
            )
    both: dict[str, Any] = {}
    for name in ("pixels", "alpha", "inks"):
        pair = [getattr(left, name), getattr(right, name)]
        both[name] = None if any(p is None for p in pair) else np.concatenate(pair, axis=1)
    return replace(right, **both)


# ---- reading -----------------------------------------------------------------------------------


def _limit(path: Path, max_pixels: int | None) -> int:
    if max_pixels is not None:
        return max_pixels
    value = env.read("CLIPWEATHER_MAX_PIXELS")
    if not value.isdecimal():
        raise PictureError(path, f"CLIPWEATHER_MAX_PIXELS must be a number, got {value!r}")
    return int(value)


@contextmanager
def in_words(path: Path, failed: str) -> Iterator[None]:
    """Turns whatever Pillow raises over a strange file into a :class:`PictureError`."""
    from PIL import UnidentifiedImageError

    try:
        yield
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        words = f"is not a picture in one of {', '.join(READ)}, or is damaged or of a rare kind"
        raise PictureError(path, words) from error
    except OSError as error:
        words = error.strerror or str(error)
        raise PictureError(path, f"{failed}: {words}") from error
    except Exception as error:
        raise PictureError(path, f"{failed}: {type(error).__name__}: {error}") from error


@contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """The file's header. The caller checks the size: Pillow's own limit could not be raised.

    Pillow gets a file, not a path: given a path it maps some TIFF files into memory, and then does
    not turn those whose EXIF data ask for it, but says that it has.
    """
    from PIL import Image

    with open(path, "rb") as file:
        with _unlimited():
            Image.init()
            image = Image.open(file, formats=READ)
        with image:
            yield image


@contextmanager
def _unlimited() -> Iterator[None]:
    from PIL import Image

    with metadata.unwarned():
        before = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = before


def _load(image: Image) -> None:
    """Decodes. Pillow checks its limit here again, but only of TIFF files."""
    from PIL import Image as pillow

    with metadata.unwarned():  # not while another thread has it lifted
        limit = pillow.MAX_IMAGE_PIXELS
    if image.format == "TIFF" and limit is not None and image.width * image.height > limit:
        with _unlimited():
            image.load()
    else:
        image.load()


def _seek(image: Image, path: Path, frame: int | None) -> None:
    # MPO is a JPEG file with more behind it: previews of the picture, or another camera's.
    several = image.format != "MPO" and getattr(image, "is_animated", False)
    if frame is None and several and not _only_copies_follow(image):
        kind = "pages" if image.format == "TIFF" else "frames"
        raise PictureError(
            path,
            f"holds {getattr(image, 'n_frames', 'several')} {kind}; split it into files of one "
            "picture each (in Python read_picture(path, frame=0) takes the first)",
        )
    if frame is not None and (several or frame != 0):
        try:
            image.seek(frame)
        except EOFError as error:
            raise PictureError(path, f"has no frame {frame}") from error


def _only_copies_follow(image: Image) -> bool:
    """Whether all pages of a TIFF file but the first are marked as its smaller copies."""
    if image.format != "TIFF":
        return False
    kinds = []
    for page in range(getattr(image, "n_frames", 1)):
        image.seek(page)
        kinds.append(int(image.tag_v2.get(SUBFILE_TYPE, 0)) & SMALLER_COPY)  # type: ignore[attr-defined]
    image.seek(0)
    return not kinds[0] and all(kinds[1:])


def _decoded(image: Image, path: Path, frame: int) -> Picture:
    # First: to look for EXIF data Pillow may decode the picture, and then forgets how.
    refused = deep.why_not_deep(image) if image.format in ("PNG", "TIFF") else ""
    if refused:
        raise PictureError(path, refused)
    kept = metadata.read(image) | {"path": path}
    behind = getattr(image, "n_frames", 1) - 1 if image.format == "MPO" else 0
    if behind > 0:
        kept["left_out"] = (
            f"{behind} more picture{'s' * (behind > 1)} behind the first (a preview, a map of "
            "brightness, or another camera's)"
        )
    asked = metadata.orientation(image)
    if asked in metadata.LYING and kept["dpi"] is not None:
        kept["dpi"] = kept["dpi"][::-1]
    if refused is None:

        @contextmanager
        def opened() -> Iterator[Image]:
            with _opened(path) as again:
                again.seek(frame)
                yield again

        samples, orientation = deep.read_deep(opened, _load)
        pixels, alpha = _without_alpha(samples, image.info.get("transparency"))
        mode: Mode = "L" if pixels.shape[2] == 1 else "RGB"
        cmyk = None
    else:
        _load(image)
        pixels, mode, alpha, cmyk = _split(image)
        orientation = metadata.orientation(image)
    kept["alpha"] = None if alpha is None else _upright(alpha, orientation)
    kept["inks"] = None if cmyk is None else _upright(cmyk, orientation)
    return Picture(_upright(pixels, orientation), mode, **kept)


def _without_alpha(samples: Samples, key: Any) -> tuple[Samples, Samples | None]:
    """Deep samples apart: colours, and transparency or what a colour key says of it."""
    if samples.shape[2] in (2, 4):
        return samples[..., :-1], samples[..., -1]
    if key is None:
        return samples, None
    see_through = (samples == np.asarray(key, np.uint16)).all(axis=2)
    return samples, np.where(see_through, 0, 65535).astype(np.uint16)


def _split(image: Image) -> tuple[Samples, Mode, Samples | None, NDArray[np.uint8] | None]:
    """Pillow's image as (pixels, mode, alpha, inks)."""
    if image.mode.startswith("I;16"):
        return np.array(image).astype(np.uint16)[..., None], "L", None, None
    if image.mode == "CMYK":
        cmyk = np.array(image)
        return light(cmyk), "CMYK", None, cmyk
    mode: Mode = {"1": "1", "L": "L", "LA": "L", "La": "L", "P": "P", "PA": "P"}.get(
        image.mode, "RGB"
    )  # type: ignore[assignment]
    see_through = image.has_transparency_data
    gray = mode in ("1", "L")
    wanted = "RGBA" if see_through else "L" if gray else "RGB"
    samples = np.array(image if image.mode == wanted else image.convert(wanted))
    if gray and not see_through:
        return samples[..., None], mode, None, None
    alpha = samples[..., 3] if see_through else None
    return samples[..., : 1 if gray else 3], mode, alpha, None


def _upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The array turned and mirrored as EXIF's orientation 1 to 8 asks for."""
    if orientation == 1:
        return array
    if orientation in metadata.LYING:
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


# ---- writing -----------------------------------------------------------------------------------


def _fitted(picture: Picture, format: str, path: Path) -> Picture:
    """The picture in a mode and depth that the format holds."""
    alpha = picture.alpha
    if alpha is not None and not HELD[format][1]:
        if alpha.size and alpha.min() < np.iinfo(alpha.dtype).max:
            raise PictureError(path, f"{format} has no transparency; write PNG, TIFF or WebP")
        picture = replace(picture, alpha=None)
    held = HELD[format][picture.alpha is not None]
    mode = next(mode for mode in (picture.mode, "L", *INSTEAD[picture.mode]) if mode in held)
    if mode == "L" and picture.pixels.shape[2] == 3:
        mode = next(mode for mode in INSTEAD[picture.mode] if mode in held)
    changes: dict[str, Any] = {"mode": mode, "inks": picture.inks if mode == "CMYK" else None}
    if picture.mode == "CMYK" != mode:
        changes["icc_profile"] = None  # it speaks of inks
    elif mode in ("P", "RGB") and picture.mode in ("1", "L"):
        changes["icc_profile"] = metadata.without_gray(picture.icc_profile)
    if mode != "CMYK" and (format not in DEEP or picture.mode == "CMYK"):
        changes["pixels"] = in_eight_bits(picture.pixels)
        changes["alpha"] = None if picture.alpha is None else in_eight_bits(picture.alpha)
    return replace(picture, **changes)


def _as_image(picture: Picture) -> Image:
    """Pillow's image in the picture's mode; 8 bits."""
    from PIL import Image

    pixels, alpha = picture.pixels, picture.alpha
    if picture.mode == "CMYK":
        assert picture.inks is not None
        return Image.fromarray(inks(pixels.astype(np.uint16, copy=False), picture.inks), "CMYK")
    channels = pixels if pixels.shape[2] == 3 else pixels[..., 0]
    if picture.mode == "RGB" and pixels.shape[2] == 1:
        channels = np.repeat(pixels, 3, axis=2)
    if picture.mode == "P":
        return in_palette(channels, alpha)
    if alpha is not None:
        planes = channels if channels.ndim == 3 else channels[..., None]
        channels = np.concatenate([planes, alpha[..., None]], axis=2)
    image = Image.fromarray(np.ascontiguousarray(channels))
    return image.convert("1") if picture.mode == "1" else image
