"""reduced_kv_attention on the CUDA kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from clipweather_fast.ops import _native

__all__ = ["backward", "forward"]


def _sizes(
    q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[list[int], list[int], float, int, int, int]:
    """N, heads, Lq, Lk, d; the strides; scale, dtype, device and stream."""
    lengths = [q.shape[0], q.shape[2], q.shape[1], k.shape[1], q.shape[3]]
    strides = [stride for tensor in (q, k, v) for stride in tensor.stride()[:3]]
    dtype, stream = _native.DTYPE_CODES[q.dtype], _native.stream(q.device)
    return lengths, strides, scale, dtype, q.get_device(), stream


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Fills ``out`` (N, Lq, heads, d) and ``lse`` (N, heads, Lq)."""
    addresses = [tensor.data_ptr() for tensor in (q, k, v, out, lse)]
    _native.core().reduced_kv_attention_forward_cuda(addresses, *_sizes(q, k, v, scale))


def backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fills the gradients of q, k and v; ``grad`` and ``out`` are dense."""
    core, sizes = _native.core(), _sizes(q, k, v, scale)
    bytes_needed = core.reduced_kv_attention_workspace_bytes(sizes[0], sizes[3])
    workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=q.device)
    addresses = [tensor.data_ptr() for tensor in (grad, q, k, v, out, lse, *grads)]
    core.reduced_kv_attention_backward_cuda(addresses, *sizes, workspace.data_ptr())
