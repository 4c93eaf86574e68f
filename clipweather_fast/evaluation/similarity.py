"""The structural similarity of two planes at every place where the window fits.

The window's sums are separable. All is NumPy in float64 with sums in a fixed order: the same bits
with any number of threads. The caller hands over a few rows at a time, so no map of a whole picture
is ever made.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["SIDES", "similarity"]

#: Sides of the windows.
SIDES = {"uniform": 7, "gaussian": 11}
K1, K2 = 0.01, 0.03
SIGMA = 1.5

_Map = NDArray[np.float64]


def similarity(x: _Map, y: _Map, peak: float, window: Literal["uniform", "gaussian"]) -> _Map:
    """SSIM for each place of the window inside the picture.

    .. math:: (2 m_x m_y + C_1)(2 s_{xy} + C_2) / ((m_x^2 + m_y^2 + C_1)(s_x^2 + s_y^2 + C_2))

    with means m and (co)variances s under the window, C₁ = (0.01 L)², C₂ = (0.03 L)² (Wang et al.,
    2004).

    Args:
        x: (H, W), H and W at least the window's side.
        y: the same shape.
        peak: L.
        window: "uniform": 7 × 7, variances divided by 48 (the sample's). "gaussian": 11 × 11 with
            σ = 1.5, variances divided by the weights' sum (the population's).

    Returns:
        (H - side + 1, W - side + 1).
    """
    under = _uniform if window == "uniform" else _gaussian
    mean_x, mean_y = under(x), under(y)
    product = mean_x * mean_y
    squares = mean_x * mean_x + mean_y * mean_y
    # The formula has the two variances only as their sum: four windowed means instead of five.
    variances = under(x * x + y * y) - squares
    covariance = under(x * y) - product
    if window == "uniform":
        count = SIDES[window] ** 2
        variances *= count / (count - 1)
        covariance *= count / (count - 1)
    c1, c2 = (K1 * peak) ** 2, (K2 * peak) ** 2
    above = (2 * product + c1) * (2 * covariance + c2)
    return above / ((squares + c1) * (variances + c2))


def _uniform(x: _Map) -> _Map:
    """Means over 7 × 7, by sums of two, four and seven neighbours."""
    for axis in (0, 1):
        n = x.shape[axis]
        twos = _cut(x, axis, 0, n - 1) + _cut(x, axis, 1, n)
        fours = _cut(twos, axis, 0, n - 3) + _cut(twos, axis, 2, n - 1)
        sevens = _cut(fours, axis, 0, n - 6) + _cut(twos, axis, 4, n - 2)
        sevens += _cut(x, axis, 6, n)
        x = sevens
    x *= 1 / 49
    return x


def _gaussian(x: _Map) -> _Map:
    """Means over 11 × 11 with Gaussian weights, which are symmetric: six products for eleven."""
    for axis in (0, 1):
        n = x.shape[axis] - 10
        out = _cut(x, axis, 5, 5 + n) * WEIGHTS[0]
        both = np.empty_like(out)
        for distance, weight in enumerate(WEIGHTS[1:], 1):
            left = _cut(x, axis, 5 - distance, 5 - distance + n)
            np.add(left, _cut(x, axis, 5 + distance, 5 + distance + n), out=both)
            both *= weight
            out += both
        x = out
    return x


def _cut(x: _Map, axis: int, start: int, stop: int) -> _Map:
    return x[start:stop] if axis == 0 else x[:, start:stop]


def _weights() -> tuple[float, ...]:
    """The Gaussian's weights from its middle outwards, of which the sum over the window is 1."""
    heights = [math.exp(-0.5 * (distance / SIGMA) ** 2) for distance in range(6)]
    total = heights[0] + 2 * math.fsum(heights[1:])
    return tuple(height / total for height in heights)


WEIGHTS = _weights()
