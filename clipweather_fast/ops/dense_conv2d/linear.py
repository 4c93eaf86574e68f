"""A kernel of one pixel on tokens, as Linear layers call it: without an image's views and checks.

A step of training makes so many of these calls that what surrounds a product counts.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.ops._direct import dispatcher_idle
from clipweather_fast.ops.dense_conv2d import native_cpu
from clipweather_fast.ops.dense_conv2d.op import product_pays

__all__ = ["Grads", "linear_gradients", "linear_product", "linear_values"]

#: Of tokens, weight and bias; None: not wanted.
Grads = tuple[Tensor | None, Tensor | None, Tensor | None]


def linear_product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Tokens (N, L, C) times weight (C', C), plus bias: y (N, L, C'), dense, by the CPU kernels.

    The caller has found that all are ordinary CPU tensors of one dtype, float32 or float64, that
    their shapes go together, and that none is empty. Second derivatives are PyTorch's.
    """
    x, weight = x.contiguous(), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    if torch.is_grad_enabled():
        y: Tensor = _LinearProduct.apply(x, weight, bias)
        return y
    return linear_values(x, weight, bias)


def linear_values(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The same of dense tensors, without a gradient; by PyTorch's product where that is faster."""
    if not product_pays(x.shape[0] * x.shape[1], weight):
        return F.linear(x, weight, bias)
    y = x.new_empty(x.shape[0], x.shape[1], weight.shape[0])
    native_cpu.linear(x, weight, bias, y)
    return y


def linear_gradients(grad_y: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, ...]) -> Grads:
    """Gradients of ``x``, ``weight`` and bias, dense; of those that are not ``wanted``, None."""
    if not any(wanted):
        return None, None, None
    # Whoever keeps tensors for the backward pass may give them back in another order.
    grad_y, x, weight = grad_y.contiguous(), x.contiguous(), weight.contiguous()
    if not product_pays(x.shape[0] * x.shape[1], weight):
        return _differentiable(grad_y, x, weight, wanted)
    grad_x = torch.empty_like(x) if wanted[0] else None
    grad_weight = torch.empty_like(weight) if wanted[1] else None
    grad_bias = weight.new_empty(weight.shape[0]) if wanted[2] else None
    native_cpu.linear_gradients(grad_y, x, weight, (grad_x, grad_weight, grad_bias))
    return grad_x, grad_weight, grad_bias


class _LinearProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear_values(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Grads:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or not dispatcher_idle(grads):
            return _differentiable(grads[0], x, weight, ctx.needs_input_grad)
        return linear_gradients(grads[0], x, weight, ctx.needs_input_grad)


def _differentiable(grad_y: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, ...]) -> Grads:
    """The same by PyTorch, which whoever differentiates, transforms or watches it can see."""
    grad_x = grad_y @ weight if wanted[0] else None
    outputs, inputs = weight.shape
    grad_weight = grad_y.reshape(-1, outputs).T @ x.reshape(-1, inputs) if wanted[1] else None
    return grad_x, grad_weight, grad_y.sum((0, 1)) if wanted[2] else None
