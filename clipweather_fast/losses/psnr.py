"""Peak signal-to-noise ratio of pictures in [0, 1], differentiable."""

from __future__ import annotations

from torch import Tensor

from clipweather_fast.losses._pictures import check_pictures, reduced, wide

__all__ = ["psnr", "psnr_loss"]

#: Mean squared error of 80 dB. The gradient grows as one over the error, and has to end somewhere.
FLOOR = 1e-8
#: The paper's loss counts from here: beyond it the loss is negative.
GOAL_DB = 40.0


def psnr(y: Tensor, truth: Tensor, *, floor: float = FLOOR, reduction: str = "mean") -> Tensor:
    r"""PSNR in dB of each picture over its channels and pixels, for a range of 1.

    .. math:: -10 \log_{10} \max(\mathrm{MSE}, \mathrm{floor})

    For training: pictures are taken as they are, neither clamped nor rounded. What is published is
    measured by :mod:`clipweather_fast.evaluation`.

    Args:
        y, truth: (N, C, H, W).
        floor: a smaller mean squared error counts as this one and has no gradient; 1e-8 is 80 dB.
        reduction: ``"mean"`` over the pictures, or ``"none"``: one value per picture (N,).

    Returns:
        dB, at least float32.

    Raises:
        TypeError, ValueError: if the pictures do not go together, or another argument is not one
            of the above.
    """
    check_pictures("psnr", y, truth)
    if not floor > 0:
        raise ValueError(f"psnr: floor must be positive, got {floor!r}")
    error = (wide(y) - wide(truth)).square().mean((1, 2, 3))
    return reduced("psnr", -10.0 * error.clamp_min(floor).log10(), reduction)


def psnr_loss(y: Tensor, truth: Tensor, *, floor: float = FLOOR) -> Tensor:
    r"""The PSNR term of Eq. 10: :math:`1 - \mathrm{PSNR}(y, \mathrm{truth}) / 40`, a scalar.

    Arguments and errors as :func:`psnr`.

    Reference:
        Eq. 10 of arXiv 2306.09008, which has no public formula; any other affine form differs by
        its weight.
    """
    return 1.0 - psnr(y, truth, floor=floor) / GOAL_DB
