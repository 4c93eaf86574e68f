"""sar_logits on the CPU kernels."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._buffers import accumulator, dense_image, dense_parameter, filled

__all__ = ["backward", "forward"]


def forward(x: Tensor, dw: Tensor, db: Tensor, pw: Tensor, pb: Tensor, logits: Tensor) -> None:
    """Fills ``logits``."""
    tensors = [dense_image(x), *(dense_parameter(p, x.dtype) for p in (dw, db, pw, pb))]
    with filled(logits, image=True) as target:
        _native.core().sar_logits_forward_cpu(
            [_native.address(t) for t in tensors],
            _native.address(target),
            x.shape,
            pw.shape[0],
            _native.DTYPE_CODES[x.dtype],
            torch.get_num_threads(),
        )


def backward(
    grad_logits: Tensor,
    x: Tensor,
    dw: Tensor,
    db: Tensor,
    pw: Tensor,
    pb: Tensor,
    grads: tuple[Tensor, ...],
    accumulate: bool = False,
) -> None:
    """Fills the gradients of the five arguments; ``accumulate`` adds to that of ``x`` instead."""
    tensors = [dense_image(x), *(dense_parameter(p, x.dtype) for p in (dw, db, pw, pb))]
    dtype = accumulator(x.dtype)
    gradient = dense_image(grad_logits.to(dtype))
    with ExitStack() as stack:
        targets = [stack.enter_context(filled(grads[0], image=True, keep=accumulate))]
        targets += [stack.enter_context(filled(grad, dtype)) for grad in grads[1:]]
        _native.core().sar_logits_backward_cpu(
            [_native.address(t) for t in tensors],
            _native.address(gradient),
            [_native.address(t) for t in targets],
            accumulate,
            x.shape,
            pw.shape[0],
            _native.DTYPE_CODES[x.dtype],
            torch.get_num_threads(),
        )
