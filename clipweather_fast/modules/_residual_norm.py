"""Layer normalisation of tokens and its gradients by the CPU kernels, without autograd."""

from __future__ import annotations

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops.dense_conv2d.linear import Grads

__all__ = ["normed", "normed_gradients"]

NOTHING = (0, 0, 0.0)
FLOAT32 = _native.DTYPE_CODES[torch.float32]


def normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Tokens (N, L, C) with mean 0 and variance 1 over C, times weight (C), plus bias (C); all
    float32 on the CPU and dense."""
    y = torch.empty_like(x)
    channels = x.shape[-1]
    after = weight.data_ptr(), bias.data_ptr(), eps
    rows = x.numel() // channels
    _native.core().residual_norm_cpu(
        *(x.data_ptr(), FLOAT32, 0, NOTHING, after, 0, y.data_ptr(), FLOAT32),
        *(rows, channels, torch.get_num_threads()),
    )
    return y


def normed_gradients(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    eps: float,
    wanted: tuple[bool, ...],
    residual: Tensor | None = None,
) -> Grads:
    """Gradients of :func:`normed`'s ``x``, ``weight`` and bias; of those not ``wanted``, None.

    Args:
        grad_y, x: dense.
        residual: (N, L, C), dense, what others who read ``x`` make of it; it is added.
    """
    if not any(wanted):
        return None, None, None
    grad_x = torch.empty_like(x) if wanted[0] else None
    grad_weight, grad_bias = (torch.empty_like(weight) if w else None for w in wanted[1:])
    channels = x.shape[-1]
    _native.core().residual_norm_backward_cpu(
        *(grad_y.data_ptr(), _native.address(residual), x.data_ptr(), (weight.data_ptr(), 0, eps)),
        tuple(map(_native.address, (grad_x, grad_weight, grad_bias))),
        *(x.numel() // channels, channels, torch.get_num_threads()),
    )
    return grad_x, grad_weight, grad_bias
