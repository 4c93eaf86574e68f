"""Smooth L1: squares of small differences, absolute values of large ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.losses._pictures import check_pictures, wide

__all__ = ["smooth_l1"]


def smooth_l1(y: Tensor, truth: Tensor, beta: float = 1.0) -> Tensor:
    r"""Smooth L1 distance of restored pictures from the truth.

    .. math:: \frac{1}{n}\sum \begin{cases} d^2 / 2\beta & d < \beta \\ d - \beta/2 & \text{else}
        \end{cases}, \qquad d = |y - \mathrm{truth}|

    Args:
        y: (N, C, H, W), not clamped.
        truth: the same shape, in [0, 1].
        beta: where squares end. With 1, the paper's, pictures in [0, 1] see squares almost alone.

    Returns:
        The mean over all values, a scalar, at least float32.

    Reference:
        The first term of Eq. 11 of arXiv 2306.09008, as TransWeather has it.

    Raises:
        TypeError, ValueError: if the pictures do not go together or ``beta`` is not positive.
    """
    check_pictures("smooth_l1", y, truth)
    if not beta > 0:
        raise ValueError(f"smooth_l1: beta must be positive, got {beta!r}")
    return F.smooth_l1_loss(wide(y), wide(truth), beta=beta)
