"""How reduced_kv_attention's tensors cross over to the CPU kernels."""

from __future__ import annotations

import torch
from torch import Tensor

from clipweather_fast.ops import _native

__all__ = ["backward", "forward"]


def _lengths(q: Tensor, k: Tensor) -> list[int]:
    """N, heads, Lq, Lk, d."""
    return [q.shape[0], q.shape[2], q.shape[1], k.shape[1], q.shape[3]]


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for tensor in tensors for stride in tensor.stride()[:3]]


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor | None) -> None:
    """Fills ``out`` (N, Lq, heads, d) and ``lse`` (N, heads, Lq), which only gradients need."""
    core, code, threads = _native.core(), _native.DTYPE_CODES[q.dtype], torch.get_num_threads()
    lengths = _lengths(q, k)
    per_thread = _aligned(core.reduced_kv_attention_workspace_cpu(lengths, code)[0])
    workspace = torch.empty(per_thread * threads, dtype=torch.uint8)
    tensors = (q, k, v, out, lse, workspace)
    core.reduced_kv_attention_forward_cpu(
        *map(_native.address, tensors),
        per_thread,
        lengths,
        _strides(q, k, v),
        scale,
        code,
        threads,
    )


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
    """Fills the gradients of q, k and v."""
    core, code, threads = _native.core(), _native.DTYPE_CODES[q.dtype], torch.get_num_threads()
    lengths = _lengths(q, k)
    _, per_thread, sums = core.reduced_kv_attention_workspace_cpu(lengths, code)
    per_thread = _aligned(per_thread)
    partials = torch.empty(sums, dtype=lse.dtype)
    workspace = torch.empty(per_thread * threads, dtype=torch.uint8)
    tensors = (grad, q, k, v, out, lse, *grads, partials, workspace)
    core.reduced_kv_attention_backward_cpu(
        *map(_native.address, tensors),
        per_thread,
        lengths,
        _strides(q, k, v),
        scale,
        code,
        threads,
    )


def _aligned(count: int) -> int:
    """Whole cache lines, so that each thread's workspace starts on one."""
    return -(-count // 64) * 64
