"""SSIM by the CPU kernel: values and their gradient in one pass over the pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.ops._direct import dispatcher_idle

__all__ = ["Definition", "kernel_serves", "similarity"]


class Definition(NamedTuple):
    """What SSIM is.

    Attributes:
        window: the weights along one side.
        constants: C1 and C2.
        plain: the same by PyTorch, for second derivatives.
    """

    window: tuple[float, ...]
    constants: tuple[float, float]
    plain: Callable[[Tensor, Tensor], Tensor]


def kernel_serves(y: Tensor, truth: Tensor) -> bool:
    """Whether the kernel computes this call: ordinary CPU tensors, a gradient for ``y`` at most.

    Whoever compiles, exports, transforms or counts operators meets PyTorch's.
    """
    return (
        y.device.type == truth.device.type == "cpu"
        and y.dtype == truth.dtype
        and y.dtype in (torch.float32, torch.float64)
        and not truth.requires_grad
        and requested_backend() in ("auto", "cpu")
        and _native.why_not_cpu(y) is None
        and dispatcher_idle((y, truth))
    )


def similarity(y: Tensor, truth: Tensor, definition: Definition) -> Tensor:
    """SSIM of each picture (N,) of ``y`` and ``truth`` (N, C, H, W), for calls that
    :func:`kernel_serves`."""
    if not (torch.is_grad_enabled() and y.requires_grad):
        return _similarity(y, truth, definition, None)
    values: Tensor = _Similarity.apply(y, truth, definition)
    return values


class _Similarity(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, truth: Tensor, definition: Definition) -> Tensor:
        slope = torch.empty_like(y, memory_format=torch.contiguous_format)
        ctx.save_for_backward(y, truth, slope)
        ctx.plain = definition.plain
        return _similarity(y, truth, definition, slope)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        y, truth, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            values = ctx.plain(y, truth)
            (grad_y,) = torch.autograd.grad(values, y, grad, create_graph=True)
        else:
            grad_y = slope * (grad / y.shape[1])[:, None, None, None]
        return grad_y, None, None


def _similarity(y: Tensor, truth: Tensor, definition: Definition, slope: Tensor | None) -> Tensor:
    """The values; fills ``slope`` with the gradient of every plane's own mean."""
    n, c, h, w = y.shape
    y, truth = y.contiguous(), truth.contiguous()
    planes = torch.empty(n, c, dtype=torch.float64)
    _native.core().ssim_cpu(
        y.data_ptr(),
        truth.data_ptr(),
        definition.window,
        planes.data_ptr(),
        _native.address(slope),
        (n * c, h, w),
        *definition.constants,
        _native.DTYPE_CODES[y.dtype],
        torch.get_num_threads(),
    )
    return planes.mean(1).to(y.dtype)
