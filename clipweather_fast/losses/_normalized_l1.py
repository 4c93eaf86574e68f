"""Normalise, pool and L1 in one differentiable step that keeps nothing of full size.

Forward and backward walk the residual map in pieces that stay in the processor's cache. A piece is
pooled, normalised and compared, and forgotten; backward computes it again. Saved are the arguments:
the residual map, which lives anyway, and the target, which all blocks of its size share.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from clipweather_fast.losses._channel_pool import pooled, spread
from clipweather_fast.losses._pictures import no_autocast, wide

__all__ = ["Normalization", "divisors", "normalized", "normalized_l1", "pieces"]

Normalization = Literal["channels", "sample", "none"]

#: Vectors shorter than this are divided by it.
EPSILON = 1e-6
#: Values of a piece. On the CPU four arrays of it fit the second-level cache of one core; on a GPU
#: a launch costs more than a trip to memory.
PIECE = {"cpu": 1 << 15}
PIECE_ELSEWHERE = 1 << 22

Piece = tuple[slice, slice, slice]


def pieces(x: Tensor, *, whole: bool = False) -> Iterator[Piece]:
    """Indices of x (N, C, H, W): whole pictures if several fit a piece, else rows of one.

    Args:
        x: only its shape and device count.
        whole: never less than a picture.
    """
    n, c, h, w = x.shape
    most = PIECE.get(x.device.type, PIECE_ELSEWHERE)
    together = max(1, most // (c * h * w))
    rows = h if whole or together > 1 else max(1, min(h, most // (c * w)))
    for first in range(0, n, together):
        for top in range(0, h, rows):
            yield slice(first, first + together), slice(None), slice(top, top + rows)


def divisors(x: Tensor, channels: int, normalization: Normalization) -> Tensor | None:
    """What a map is divided by where that takes a walk over all of it, (N, 1, 1, 1); else None.

    Args:
        x: the map (N, C, H, W) before it is pooled to ``channels``.
        channels: of the pooled map.
        normalization: ``"sample"`` takes the walk.
    """
    if normalization != "sample":
        return None
    squares = wide(x[:, :1, :1, :1]).new_zeros(x.shape[0], 1, 1, 1)
    for piece in pieces(x):
        part = pooled(wide(x[piece]), channels)
        squares[piece[0]] += part.square().sum((1, 2, 3), keepdim=True)
    return squares.sqrt_()


def normalized(
    part: Tensor, normalization: Normalization, whole: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """A piece of a pooled map divided by its lengths, and these lengths where there are any.

    Args:
        part: (N, c, H, W).
        normalization: as above.
        whole: the lengths (N, 1, 1, 1) for ``"sample"``, from :func:`divisors`.
    """
    if normalization == "none":
        return part, None
    length = whole
    if length is None:
        length = torch.linalg.vector_norm(part, dim=1, keepdim=True)
    return part / length.clamp_min(EPSILON), length


class _NormalizedL1(torch.autograd.Function):
    """mean |Norm(pool(residual)) - target| with a gradient for ``residual``."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, target: Tensor, normalization: Normalization) -> Tensor:
        channels = target.shape[1]
        whole = divisors(residual, channels, normalization)
        along = None if whole is None else torch.zeros_like(whole)
        sums = []
        for piece in pieces(residual):
            unit, _ = _unit(residual, channels, piece, normalization, whole)
            difference = unit - target[piece]
            if along is not None and ctx.needs_input_grad[0]:
                # The gradient of a length needs a sum over the picture before its first value.
                signs = difference.sign().mul_(unit)
                along[piece[0]] += signs.sum((1, 2, 3), keepdim=True)
            sums.append(difference.abs_().sum())
        ctx.save_for_backward(residual, target, whole, along)
        ctx.normalization = normalization
        return torch.stack(sums).sum() / target.numel()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        residual, target, whole, sums_along = ctx.saved_tensors
        grad_residual = torch.empty_like(residual)
        scale = grad / target.numel()
        with no_autocast(residual):
            for piece in pieces(residual):
                unit, length = _unit(residual, target.shape[1], piece, ctx.normalization, whole)
                signs = (unit - target[piece]).sign_()
                if length is None:
                    signs.mul_(scale)
                else:
                    if sums_along is None:
                        along = (signs * unit).sum(1, keepdim=True)
                    else:
                        along = sums_along[piece[0]]
                    # Below epsilon the divisor is constant, and has no gradient.
                    signs.sub_(unit.mul_(along * (length > EPSILON)))
                    signs.mul_(scale / length.clamp_min(EPSILON))
                grad_residual[piece].copy_(spread(signs, residual.shape[1]))
        return grad_residual, None, None


def _unit(
    residual: Tensor,
    channels: int,
    piece: Piece,
    normalization: Normalization,
    whole: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """A piece of Norm(pool(residual)), and the lengths it was divided by."""
    part = pooled(wide(residual[piece]), channels)
    return normalized(part, normalization, None if whole is None else whole[piece[0]])


def normalized_l1(residual: Tensor, target: Tensor, normalization: Normalization) -> Tensor:
    r"""Mean absolute difference of :math:`\mathrm{Norm}(\mathrm{Pool}(R))` and a target.

    Args:
        residual: R (N, C, H, W); it gets the gradient.
        target: (N, c, H, W) with c ≤ C, normalised already, float32 or float64.
        normalization: ``"channels"``: every place's vector of c values has length one;
            ``"sample"``: every picture's map has; ``"none"``.

    Returns:
        A scalar in the target's dtype.
    """
    with no_autocast(residual):
        loss: Tensor = _NormalizedL1.apply(residual, target, normalization)
    return loss
