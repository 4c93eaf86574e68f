"""Pictures in at most 256 colours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["in_palette"]

COLOURS = 256


def in_palette(pixels: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> Image:
    """An image of mode P: exact if there are at most 256 colours, else the best 256, dithered.

    Args:
        pixels: (H, W) gray or (H, W, 3).
        alpha: (H, W). If it is only ever 0 or 255 it stays exact; else it is approximated with the
            colours.
    """
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    opaque = np.full(rgb.shape[:2], 255, np.uint8)
    rgba = np.concatenate([rgb, (opaque if alpha is None else alpha)[..., None]], axis=2)
    packed = np.ascontiguousarray(rgba).view("<u4")[..., 0]
    colours, indices = _unique(packed)
    if len(colours) <= COLOURS:
        table = np.ascontiguousarray(colours).view(np.uint8).reshape(-1, 4)
        return _image(indices.astype(np.uint8), table, alpha is not None)
    if alpha is None or _is_mask(alpha):
        return _dithered(rgb, alpha)
    from PIL import Image

    return Image.fromarray(rgba).quantize(COLOURS, Image.Quantize.FASTOCTREE)


def _unique(packed: NDArray[np.uint32]) -> tuple[NDArray[np.uint32], NDArray[np.intp]]:
    """Sorted colours and, if a palette holds them, the index of each pixel."""
    colours = np.unique(packed)
    if len(colours) > COLOURS:
        return colours, np.empty(0, np.intp)
    return colours, np.searchsorted(colours, packed)


def _is_mask(alpha: NDArray[np.uint8]) -> bool:
    return bool(np.isin(alpha, (0, 255)).all())


def _image(indices: NDArray[np.uint8], table: NDArray[np.uint8], see_through: bool) -> Image:
    from PIL import Image

    image = Image.fromarray(indices)
    image.putpalette(table[:, :3].tobytes(), "RGB")
    if see_through:
        clear = np.flatnonzero(table[:, 3] == 0)
        only = len(clear) == 1 and (np.delete(table[:, 3], clear) == 255).all()
        # One clear colour is the only transparency that GIF has.
        image.info["transparency"] = int(clear[0]) if only else table[:, 3].tobytes()
    return image


def _dithered(rgb: NDArray[np.uint8], alpha: NDArray[np.uint8] | None) -> Image:
    """The best 256 colours, or 255 and a clear one."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(rgb))
    count = COLOURS if alpha is None else COLOURS - 1
    palette = image.quantize(count, Image.Quantize.MEDIANCUT)
    chosen = image.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    if alpha is None:
        return chosen
    table = np.zeros((COLOURS, 4), np.uint8)
    listed = np.frombuffer(bytes(chosen.getpalette() or []), np.uint8).reshape(-1, 3)[:count]
    table[: len(listed), :3] = listed
    table[:-1, 3] = 255
    indices = np.where(alpha == 0, COLOURS - 1, np.asarray(chosen)).astype(np.uint8)
    return _image(indices, table, see_through=True)
