"""Pictures of inks (CMYK) as light, and back.

Light is what the naive formula gives: red = (1 - cyan)(1 - black). On the way back the black ink
stays what it was, so pixels that did not change get the inks they had; a general conversion would
move black into the other three, and the picture's profile would print other colours.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["inks", "light"]


def light(cmyk: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """(H, W, 4) inks to (H, W, 3) light. 16 bits, because dark pixels differ by less than 1/255."""
    paper = 255 - cmyk.astype(np.uint32)
    product = paper[..., :3] * paper[..., 3:]
    return ((product * 65535 + 32512) // 65025).astype(np.uint16)


def inks(rgb: NDArray[np.uint16], before: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(H, W, 3) light to (H, W, 4) inks, of which black is as it was in ``before``.

    Black gives way where the picture became brighter than it allows. Where it hides all others,
    they stay too.
    """
    black = before[..., 3]
    levels = rgb.astype(np.float32) * np.float32(255 / 65535)
    # Light has been rounded to 1/65535; 1/100 of a level of ink is above that.
    room = np.floor(255 - levels.max(axis=2) + np.float32(0.01))
    kept = np.minimum(black.astype(np.float32), room)
    paper = np.maximum(255 - kept, 1)[..., None]
    colours = 255 - np.minimum(levels * 255 / paper, 255)
    after = np.concatenate([np.rint(colours), kept[..., None]], axis=2).astype(np.uint8)
    hidden = kept == 255
    after[hidden] = before[hidden]
    return after
