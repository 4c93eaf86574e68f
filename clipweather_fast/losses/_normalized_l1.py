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

from clipweather_fast._autocast import no_autocast
from clipweather_fast.losses._channel_pool import ChannelPool
from clipweather_fast.losses._pictures import wide

__all__ = [
    "EPSILON",
    "Normalization",
    "lengths",
    "normalized_l1",
    "picture_lengths",
    "pieces",
]

Normalization = Literal["channels", "sample", "none"]

#: Vectors shorter than this are divided by it.
EPSILON = 1e-6
#: Values of a piece. On the CPU a few arrays of it stay in the cache, and smaller ones pay more for
#: calls; on a GPU a launch costs more than a trip to memory.
PIECE = {"cpu": 1 << 17}
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


def picture_lengths(x: Tensor, pool: ChannelPool, normalization: Normalization) -> Tensor | None:
    """Length of every picture's pooled map, (N, 1, 1, 1), for ``"sample"``; else None.

    Args:
        x: the map (N, C, H, W) before it is pooled.
        pool: to its pooled channels.
        normalization: ``"sample"`` takes this walk over the whole map.
    """
    if normalization != "sample":
        return None
    squares = wide(x[:, :1, :1, :1]).new_zeros(x.shape[0], 1, 1, 1)
    for piece in pieces(x):
        part = pool(wide(x[piece]))
        squares[piece[0]] += part.square().sum((1, 2, 3), keepdim=True)
    return squares.sqrt_()


def lengths(part: Tensor, normalization: Normalization, pictures: Tensor | None) -> Tensor | None:
    """What a piece of a pooled map (N, c, H, W) is divided by, if it is.

    Args:
        part: the piece.
        normalization: as above.
        pictures: the lengths of the piece's pictures, from :func:`picture_lengths`.
    """
    if normalization != "channels":
        return pictures
    if part.stride(1) == 1:
        length: Tensor = torch.linalg.vector_norm(part, dim=1, keepdim=True)
        return length
    # Along the channels of a contiguous image vector_norm is ten times as slow as this.
    return part.square().sum(1, keepdim=True).sqrt_()


class _NormalizedL1(torch.autograd.Function):
    """mean |Norm(pool(residual)) - target| with a gradient for ``residual``."""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, target: Tensor, normalization: Normalization) -> Tensor:
        pool = ChannelPool(residual.shape[1], target.shape[1], target)
        pictures = picture_lengths(residual, pool, normalization)
        along = None if pictures is None else torch.zeros_like(pictures)
        sums = []
        for piece in pieces(residual):
            part = pool(wide(residual[piece]))
            length = lengths(part, normalization, _of(pictures, piece))
            unit = part if length is None else part / length.clamp_min(EPSILON)
            difference = unit - target[piece]
            if along is not None and ctx.needs_input_grad[0]:
                # The gradient of a length needs a sum over the picture before its first value.
                signs = difference.sign().mul_(part)
                along[piece[0]] += signs.sum((1, 2, 3), keepdim=True)
            sums.append(difference.abs_().sum())
        ctx.save_for_backward(residual, target, pictures, along)
        ctx.normalization = normalization
        return torch.stack(sums).sum() / target.numel()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        residual, target, pictures, along_pictures = ctx.saved_tensors
        grad_residual = torch.empty_like(residual)
        scale = grad / target.numel()
        with no_autocast(residual.device.type):
            pool = ChannelPool(residual.shape[1], target.shape[1], target)
            for piece in pieces(residual):
                part = pool(wide(residual[piece]))
                length = lengths(part, ctx.normalization, _of(pictures, piece))
                if length is None:
                    signs = (part - target[piece]).sign_().mul_(scale)
                else:
                    along = _of(along_pictures, piece)
                    signs = _through_length(part, target[piece], length, along, scale)
                grad_residual[piece] = pool.spread(signs)
        return grad_residual, None, None


def _through_length(
    part: Tensor, target: Tensor, length: Tensor, along: Tensor | None, scale: Tensor
) -> Tensor:
    """Gradient for a piece z of a pooled map: (s - z (s·z) / l²) scale / l with the signs s.

    ``along`` is s·z where the vector is a whole picture's.
    """
    divisor = length.clamp_min(EPSILON)
    signs = (part / divisor).sub_(target).sign_()
    if along is None:
        along = (signs * part).sum(1, keepdim=True)
    # Below epsilon the divisor is constant, and has no gradient.
    along = along * (length > EPSILON) / divisor.square()
    return signs.addcmul_(part, along, value=-1).mul_(scale / divisor)


def _of(pictures: Tensor | None, piece: Piece) -> Tensor | None:
    """The values of a piece's pictures."""
    return None if pictures is None else pictures[piece[0]]


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
    with no_autocast(residual.device.type):
        loss: Tensor = _NormalizedL1.apply(residual, target, normalization)
    return loss
