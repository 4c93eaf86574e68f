"""sar_conv2d on the CUDA kernels. Also serves depthwise_conv2d: then logits and weight are None."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._buffers import aligned_image, filled
from clipweather_fast.ops.sar_conv2d.native_arguments import NO_STRIDES, inputs, sizes

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
    tensors, stride = inputs(aligned_image(x), logits, weight, bias, static_weight, static_bias)
    with filled(y, image=True) as to_y, filled(residual, image=True) as to_residual:
        _native.core().sar_conv2d_forward_cuda(
            [_native.address(t) for t in tensors],
            _native.address(to_y),
            _native.address(to_residual),
            x.shape,
            *sizes(weight, static_weight),
            stride,
            _native.GATES[gate],
            _native.ACTIVATIONS[activation],
            _native.DTYPE_CODES[x.dtype],
            x.get_device(),
            _native.stream(x.device),
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
    tensors, stride = inputs(aligned_image(x), logits, weight, bias, static_weight, static_bias)
    grad_y, grad_residual = aligned_image(grad_y), aligned_image(grad_residual)
    kernel_sizes = sizes(weight, static_weight)
    gate_code, activation_code = _native.GATES[gate], _native.ACTIVATIONS[activation]
    dtype = _native.DTYPE_CODES[x.dtype]
    core = _native.core()
    bytes_needed = core.sar_conv2d_workspace_bytes(
        x.shape, *kernel_sizes, gate_code, activation_code, dtype, grad_residual is not None
    )
    workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=x.device)
    grad_logits = grads[1]
    with ExitStack() as stack:
        grad_x = stack.enter_context(filled(grads[0], image=True))
        parameters = [stack.enter_context(filled(grad, torch.float32)) for grad in grads[2:]]
        core.sar_conv2d_backward_cuda(
            [_native.address(t) for t in tensors],
            _native.address(grad_y),
            _native.address(grad_residual),
            [_native.address(t) for t in (grad_x, grad_logits, *parameters)],
            x.shape,
            *kernel_sizes,
            stride,
            NO_STRIDES if grad_logits is None else grad_logits.stride(),
            gate_code,
            activation_code,
            dtype,
            x.get_device(),
            _native.stream(x.device),
            workspace.data_ptr(),
        )
