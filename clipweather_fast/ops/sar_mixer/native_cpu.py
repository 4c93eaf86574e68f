"""sar_mixer on the CPU kernels: one pass forward; backward is that of its two halves."""

from __future__ import annotations

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._buffers import dense_image, dense_parameter, filled
from clipweather_fast.ops.sar_conv2d import native_cpu as sar_conv2d
from clipweather_fast.ops.sar_logits import native_cpu as sar_logits

__all__ = ["backward", "forward"]


def forward(
    z: Tensor,
    dw: Tensor,
    db: Tensor,
    pw: Tensor,
    pb: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    y: Tensor,
    residual: Tensor,
    logits: Tensor,
) -> None:
    """Fills ``y``, ``logits`` and, unless it is empty, ``residual``."""
    parameters = (dw, db, pw, pb, weight, bias, static_weight, static_bias)
    tensors = [dense_image(z), *(dense_parameter(p, z.dtype) for p in parameters)]
    with (
        filled(y, image=True) as to_y,
        filled(residual, image=True) as to_residual,
        filled(logits, image=True) as to_logits,
    ):
        _native.core().sar_mixer_forward_cpu(
            [_native.address(t) for t in tensors],
            _native.address(to_y),
            _native.address(to_residual),
            _native.address(to_logits),
            z.shape,
            weight.shape[0],
            weight.shape[-1],
            _native.GATES[gate],
            _native.DTYPE_CODES[z.dtype],
            torch.get_num_threads(),
        )


def backward(
    grad_y: Tensor | None,
    grad_residual: Tensor | None,
    z: Tensor,
    dw: Tensor,
    db: Tensor,
    pw: Tensor,
    pb: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    logits: Tensor,
    gate: str,
    grads: tuple[Tensor, ...],
) -> None:
    """Fills the gradients of ``z`` and of the eight parameters; empty ones are not wanted."""
    grad_logits = torch.empty_like(logits)
    sar_conv2d.backward(
        grad_y,
        grad_residual,
        z,
        logits,
        weight,
        bias,
        static_weight,
        static_bias,
        gate,
        "gelu",
        (grads[0], grad_logits, *grads[5:]),
    )
    sar_logits.backward(grad_logits, z, dw, db, pw, pb, (grads[0], *grads[1:5]), accumulate=True)
