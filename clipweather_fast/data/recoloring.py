"""Other colours for a photograph, so that a few dozen of them teach more than what they show."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np

from clipweather_fast.data.choices import Choices
from clipweather_fast.restore.picture import Samples

__all__ = ["MOST_RECOLORING", "recolored"]

#: Beyond it pictures are nearly black or white.
MOST_RECOLORING = 2.0

_ORDERS = tuple(permutations(range(3)))


def recolored(pixels: Samples, strength: float, choices: Choices) -> Samples:
    """Pixels with another gamma, other gains of the channels, and the channels in another order.

    Every value v in [0, 1] of channel c becomes g_c · v^γ with γ in [e^-s, e^s], all equally likely
    on a logarithmic scale, and g_c in [e^-s, 1]. Black stays black and nothing is clipped.

    Args:
        pixels: (H, W, 3), unsigned integers of 8 or 16 bits.
        strength: s, 0 to ``MOST_RECOLORING``; at 0 only the order changes.
        choices: five numbers of it are used.

    Returns:
        The same shape and type.
    """
    order = _ORDERS[choices.below(len(_ORDERS))]
    gamma = math.exp(strength * (2 * choices.fraction() - 1))
    top = int(np.iinfo(pixels.dtype).max)
    curve = (np.arange(top + 1) / top) ** gamma * top
    result = np.empty_like(pixels)
    for channel, source in enumerate(order):
        gain = math.exp(-strength * choices.fraction())
        table = np.rint(curve * gain).astype(pixels.dtype)
        result[..., channel] = table[pixels[..., source]]
    return result
