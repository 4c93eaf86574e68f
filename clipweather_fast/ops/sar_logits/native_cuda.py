"""sar_logits on the CUDA kernels."""

from __future__ import annotations

from contextlib import ExitStack

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._buffers import aligned_image, dense_parameter, filled

__all__ = ["backward", "forward"]


def forward(x: Tensor, dw: Tensor, db: Tensor, pw: Tensor, pb: Tensor, logits: Tensor) -> None:
    """Fills ``logits`` (N, K, H, W), of any strides."""
    tensors = [aligned_image(x), *(dense_parameter(p, x.dtype) for p in (dw, db, pw, pb))]
    _native.core().sar_logits_forward_cuda(
        [_native.address(t) for t in tensors],
        logits.data_ptr(),
        x.shape,
        pw.shape[0],
        logits.stride(),
        _native.DTYPE_CODES[x.dtype],
        x.get_device(),
        _native.stream(x.device),
    )


def backward(
    grad_logits: Tensor,
    x: Tensor,
    dw: Tensor,
    db: Tensor,
    pw: Tensor,
    pb: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """Fills the gradients of the five tensor arguments."""
    tensors = [aligned_image(x), *(dense_parameter(p, x.dtype) for p in (dw, db, pw, pb))]
    core, dtype, kernels = _native.core(), _native.DTYPE_CODES[x.dtype], pw.shape[0]
    bytes_needed = core.sar_logits_workspace_bytes(x.shape, kernels, dtype)
    workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=x.device)
    with ExitStack() as stack:
        targets = [stack.enter_context(filled(grads[0], image=True))]
        targets += [stack.enter_context(filled(grad, torch.float32)) for grad in grads[1:]]
        core.sar_logits_backward_cuda(
            [_native.address(t) for t in tensors],
            grad_logits.data_ptr(),
            [_native.address(t) for t in targets],
            x.shape,
            kernels,
            grad_logits.stride(),
            dtype,
            x.get_device(),
            _native.stream(x.device),
            workspace.data_ptr(),
        )
