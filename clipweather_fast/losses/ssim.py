"""Structural similarity of pictures in [0, 1], differentiable."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast._autocast import no_autocast
from clipweather_fast.losses._pictures import check_pictures, reduced, wide
from clipweather_fast.losses._ssim_cpu import Definition, kernel_serves, similarity

__all__ = ["ssim", "ssim_loss"]

WINDOW = 11
SIGMA = 1.5
C1, C2 = 0.01**2, 0.03**2
_GAUSSIAN = [math.exp(-0.5 * ((i - WINDOW // 2) / SIGMA) ** 2) for i in range(WINDOW)]
WEIGHTS = tuple(value / sum(_GAUSSIAN) for value in _GAUSSIAN)
#: Up to this side a product with a matrix is faster than a convolution.
LONGEST_MATRIX = 1024


def ssim(y: Tensor, truth: Tensor, *, reduction: str = "mean") -> Tensor:
    r"""SSIM of each picture: Gaussian window 11×11 with σ = 1.5, range 1, mean over the channels.

    .. math:: \frac{(2\mu_y\mu_t + C_1)(2\sigma_{yt} + C_2)}
        {(\mu_y^2 + \mu_t^2 + C_1)(\sigma_y^2 + \sigma_t^2 + C_2)}, \quad C_1 = 0.01^2,
        C_2 = 0.03^2

    Only windows that lie inside the picture count, and variances are those of the population, as
    in scikit-image with ``gaussian_weights``. torchmetrics has the same values there, and counts
    those of mirrored borders as well. On the CPU values and gradient are one pass over the pictures
    (csrc/losses/ssim_cpu.cpp); where ``truth`` needs a gradient too, and elsewhere, PyTorch's
    operators compute.

    Args:
        y, truth: (N, C, H, W), sides at least 11; neither is clamped.
        reduction: ``"mean"`` over the pictures, or ``"none"``: one value per picture (N,).

    Returns:
        At least float32, under autocast too: variances are small differences of large numbers.

    Raises:
        TypeError, ValueError: if the pictures do not go together or are too small.
    """
    check_pictures("ssim", y, truth)
    if min(y.shape[2:]) < WINDOW:
        raise ValueError(
            f"ssim: sides must be at least {WINDOW}, the window's, got {tuple(y.shape)}; "
            "leave the term out for pictures this small"
        )
    with no_autocast(y.device.type):
        a, b = wide(y), wide(truth)
        if kernel_serves(a, b):
            values = similarity(a, b, Definition(WEIGHTS, (C1, C2), _plain))
        else:
            values = _plain(a, b)
        return reduced("ssim", values, reduction)


def ssim_loss(y: Tensor, truth: Tensor) -> Tensor:
    r"""The SSIM term of Eq. 10 of arXiv 2306.09008: :math:`1 - \mathrm{SSIM}`, a scalar.

    Arguments and errors as :func:`ssim`.
    """
    return 1.0 - ssim(y, truth)


def _plain(a: Tensor, b: Tensor) -> Tensor:
    """SSIM of each picture (N,) by PyTorch's operators."""
    # The variances count only in their sum. The truth's own mean stands apart: as a rule it
    # needs no gradient.
    moments = _means(torch.stack((a, a * a + b * b, a * b)))
    mean_b = _means(b)
    mean_a, both, ab = moments.unbind()
    product, squares = mean_a * mean_b, mean_a.square() + mean_b.square()
    similar = (2 * product + C1) * (2 * (ab - product) + C2)
    return (similar / ((squares + C1) * (both - squares + C2))).mean((1, 2, 3))


def _means(maps: Tensor) -> Tensor:
    """Maps (…, H, W) under the window, where it fits."""
    planes = maps.reshape(-1, 1, *maps.shape[-2:])
    window = _window(planes)
    planes = _blurred(_blurred(planes, window, axis=2), window, axis=3)
    return planes.view(*maps.shape[:-2], *planes.shape[-2:])


def _blurred(x: Tensor, window: Tensor, axis: int) -> Tensor:
    """Weighted by the window along one axis of (N, 1, H, W), where the window fits."""
    length = x.shape[axis]
    if length > LONGEST_MATRIX:
        return F.conv2d(x, window.view((1, 1, -1, 1) if axis == 2 else (1, 1, 1, -1)))
    # A band matrix: many times the multiplications of a convolution in one channel, and yet on a
    # processor a ninth of its time at a side of 128, under a half at 1024, forward and backward.
    fitting = length - WINDOW + 1
    offsets = torch.arange(length, device=x.device)
    offsets = offsets[:, None] - offsets[None, :fitting]
    band = window[offsets.clamp(0, WINDOW - 1)] * ((offsets >= 0) & (offsets < WINDOW))
    return band.mT @ x if axis == 2 else x @ band


def _window(like: Tensor) -> Tensor:
    """The Gaussian's eleven weights."""
    # Computed where it is needed: a list of numbers would be copied there, and the GPU waited for.
    distance = torch.arange(WINDOW, dtype=like.dtype, device=like.device) - WINDOW // 2
    values = torch.exp(-0.5 * (distance / SIGMA) ** 2)
    return values / values.sum()
