"""sar_conv2d on the CPU kernels. Also serves depthwise_conv2d: then logits and weight are None."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._buffers import accumulator, dense_image, filled
from clipweather_fast.ops.sar_conv2d.native_arguments import inputs, sizes

__all__ = ["backward", "forward"]


def forward(
    x: Tensor,
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    activation: str,
    y: Tensor,
    residual: Tensor | None,
) -> None:
    """Fills ``y`` and, unless empty or None, ``residual``."""
    tensors, stride = inputs(dense_image(x), logits, weight, bias, static_weight, static_bias)
    with filled(y, image=True) as to_y, filled(residual, image=True) as to_residual:
        _native.core().sar_conv2d_forward_cpu(
            [_native.address(t) for t in tensors],
            _native.address(to_y),
            _native.address(to_residual),
            x.shape,
            *sizes(weight, static_weight),
            stride,
            _native.GATES[gate],
            _native.ACTIVATIONS[activation],
            _native.DTYPE_CODES[x.dtype],
            torch.get_num_threads(),
        )


def backward(
    grad_y: Tensor | None,
    grad_residual: Tensor | None,
    x: Tensor,
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    activation: str,
    grads: tuple[Tensor | None, ...],
) -> None:
    """Fills the gradients of the six tensor arguments; None or empty ones are not wanted."""
    tensors, stride = inputs(dense_image(x), logits, weight, bias, static_weight, static_bias)
    grad_y, grad_residual = dense_image(grad_y), dense_image(grad_residual)
    dtype = accumulator(x.dtype)
    with ExitStack() as stack:
        targets = [stack.enter_context(filled(grads[0], image=True))]
        targets.append(stack.enter_context(filled(grads[1], dtype, image=True)))
        targets += [stack.enter_context(filled(grad, dtype)) for grad in grads[2:]]
        _native.core().sar_conv2d_backward_cpu(
            [_native.address(t) for t in tensors],
            _native.address(grad_y),
            _native.address(grad_residual),
            [_native.address(t) for t in targets],
            x.shape,
            *sizes(weight, static_weight),
            stride,
            _native.GATES[gate],
            _native.ACTIVATIONS[activation],
            _native.DTYPE_CODES[x.dtype],
            torch.get_num_threads(),
        )
