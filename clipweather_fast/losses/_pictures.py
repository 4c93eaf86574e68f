"""What the losses of pictures share: their checks, and the precision they compute in."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["check_pictures", "reduced", "wide"]

REDUCTIONS = ("mean", "none")


def check_pictures(who: str, y: Tensor, truth: Tensor) -> None:
    """``TypeError`` or ``ValueError`` unless both are floating point and (N, C, H, W) alike."""
    for name, picture in (("y", y), ("truth", truth)):
        if not isinstance(picture, Tensor) or not picture.is_floating_point():
            got = picture.dtype if isinstance(picture, Tensor) else type(picture).__name__
            raise TypeError(
                f"{who}: {name} must be a floating-point tensor in [0, 1], got {got}; "
                "divide 8-bit pictures by 255"
            )
    if y.dim() != 4 or y.shape != truth.shape or y.numel() == 0:
        raise ValueError(
            f"{who}: y and truth must both be (N, C, H, W) and not empty, "
            f"got {tuple(y.shape)} and {tuple(truth.shape)}"
        )


def wide(x: Tensor) -> Tensor:
    """In float32, or float64 if it is that: squares and differences of 16 bits lose too much."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def reduced(who: str, values: Tensor, reduction: str) -> Tensor:
    """One value per picture (N,), or their mean."""
    if reduction not in REDUCTIONS:
        raise ValueError(f"{who}: reduction must be one of {REDUCTIONS}, got {reduction!r}")
    return values.mean() if reduction == "mean" else values
