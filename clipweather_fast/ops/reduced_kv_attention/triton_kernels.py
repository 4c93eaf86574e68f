"""reduced_kv_attention in Triton, forward and backward.

Forward: a program owns a block of queries of one head and walks the keys in blocks, rescaling its
sums when a larger score comes (online softmax); one block where it holds all keys. Backward is
three kernels without atomics: grad_q by blocks of queries, which also leaves rowsum(grad * out) for
the next; grad_k and grad_v by blocks of keys over runs of queries, cut by the sizes alone; and the
sum of the runs' fp32 partial results in the order of the runs. Where one block holds all keys,
backward forms the softmax anew, so that the weights sum to one and their gradients to zero.
Queries, keys and values are read in place, whatever the strides of their first three axes.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipweather_fast.ops._triton import interpreted

__all__ = ["backward", "forward", "shipped_configurations"]


INTERPRETED = tl.constexpr(interpreted())


@triton.jit
def _dot(a, b):
    """a b, summed in fp32. The interpreter multiplies the bits of bfloat16, so it gets fp32."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, input_precision="ieee")


@triton.jit
def _rows(
    p_x, i_head, o_row, length, stride_n, stride_l, stride_h, heads, D, BLOCK_D: tl.constexpr
):
    """Rows (block, D) of one head, zero outside."""
    o_d = tl.arange(0, BLOCK_D)
    p_head = p_x + (i_head // heads).to(tl.int64) * stride_n + (i_head % heads) * stride_h
    mask = (o_row < length)[:, None] & (o_d < D)[None, :]
    return tl.load(p_head + o_row.to(tl.int64)[:, None] * stride_l + o_d[None, :], mask, other=0.0)


@triton.jit
def _store_rows(p_x, value, i_head, o_row, length, heads, D, BLOCK_D: tl.constexpr):
    """Into a dense (N, length, heads, D)."""
    o_d = tl.arange(0, BLOCK_D)
    image = (i_head // heads).to(tl.int64) * length
    offset = (image + o_row.to(tl.int64)) * heads + i_head % heads
    mask = (o_row < length)[:, None] & (o_d < D)[None, :]
    tl.store(p_x + offset[:, None] * D + o_d[None, :], value.to(p_x.dtype.element_ty), mask)


@triton.jit
def _finite(maximum):
    """A row without a finite score has no maximum to subtract: its weights are 0, not NaN."""
    return tl.where(maximum == float("-inf"), 0.0, maximum)


@triton.jit
def _weights(s, grad_p, shift, delta, KEYS: tl.constexpr, WHOLE: tl.constexpr):
    """P and rowsum(P * grad_P): anew from a whole row of scores, else from the saved numbers.

    KEYS is the axis of the keys. The sums come with that axis, of length one.
    """
    if WHOLE:
        p = tl.exp2(s - tl.expand_dims(_finite(tl.max(s, KEYS)), KEYS))
        p = p / tl.expand_dims(tl.sum(p, KEYS), KEYS)
        delta = tl.sum(p * grad_p, KEYS)
    else:
        p = tl.exp2(s - tl.expand_dims(shift, KEYS))
    return p, tl.expand_dims(delta, KEYS)


@triton.jit
def reduced_kv_attention_forward_kernel(
    p_q, p_k, p_v, p_out, p_lse,
    queries, keys, heads, D,
    q_n, q_l, q_h, k_n, k_l, k_h, v_n, v_l, v_h,
    factor,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    i_head = tl.program_id(1)
    o_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    b_q = _rows(p_q, i_head, o_q, queries, q_n, q_l, q_h, heads, D, BLOCK_D)
    maximum = tl.full((BLOCK_Q,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK_Q,), tl.float32)
    out = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in range(0, keys, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        b_k = _rows(p_k, i_head, o_k, keys, k_n, k_l, k_h, heads, D, BLOCK_D)
        s = _dot(b_q, tl.trans(b_k)) * factor
        s = tl.where((o_k < keys)[None, :], s, float("-inf"))
        larger = tl.maximum(maximum, tl.max(s, 1))
        p = tl.exp2(s - _finite(larger)[:, None])
        kept = tl.exp2(maximum - _finite(larger))
        total = total * kept + tl.sum(p, 1)
        b_v = _rows(p_v, i_head, o_k, keys, v_n, v_l, v_h, heads, D, BLOCK_D)
        out = out * kept[:, None] + _dot(p.to(b_v.dtype), b_v)
        maximum = larger
    _store_rows(p_out, out / total[:, None], i_head, o_q, queries, heads, D, BLOCK_D)
    lse = (maximum + tl.log2(total)) * 0.6931471805599453
    tl.store(p_lse + i_head.to(tl.int64) * queries + o_q, lse, o_q < queries)


@triton.jit
def reduced_kv_attention_backward_q_kernel(
    p_grad, p_q, p_k, p_v, p_out, p_lse, p_grad_q, p_delta,
    queries, keys, heads, D,
    q_n, q_l, q_h, k_n, k_l, k_h, v_n, v_l, v_h,
    factor, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    i_head = tl.program_id(1)
    o_q = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    m_q = o_q < queries
    row, image = heads * D, queries.to(tl.int64) * heads * D
    b_q = _rows(p_q, i_head, o_q, queries, q_n, q_l, q_h, heads, D, BLOCK_D)
    b_grad = _rows(p_grad, i_head, o_q, queries, image, row, D, heads, D, BLOCK_D)
    shift = (
        tl.load(p_lse + i_head.to(tl.int64) * queries + o_q, m_q, other=0.0) * 1.4426950408889634
    )
    b_out = _rows(p_out, i_head, o_q, queries, image, row, D, heads, D, BLOCK_D)
    delta = tl.sum(b_grad.to(tl.float32) * b_out.to(tl.float32), 1)
    grad_q = tl.zeros((BLOCK_Q, BLOCK_D), tl.float32)
    for start in range(0, keys, BLOCK_K):
        o_k = start + tl.arange(0, BLOCK_K)
        b_k = _rows(p_k, i_head, o_k, keys, k_n, k_l, k_h, heads, D, BLOCK_D)
        b_v = _rows(p_v, i_head, o_k, keys, v_n, v_l, v_h, heads, D, BLOCK_D)
        grad_p = _dot(b_grad, tl.trans(b_v))
        s = _dot(b_q, tl.trans(b_k)) * factor
        s = tl.where((o_k < keys)[None, :], s, float("-inf"))
        p, sums = _weights(s, grad_p, shift, delta, 1, WHOLE)
        grad_s = p * (grad_p - sums)
        grad_q += _dot(grad_s.to(b_k.dtype), b_k)
    _store_rows(p_grad_q, grad_q * scale, i_head, o_q, queries, heads, D, BLOCK_D)
    tl.store(p_delta + i_head.to(tl.int64) * queries + o_q, delta, m_q)


@triton.jit
def reduced_kv_attention_backward_kv_kernel(
    p_grad, p_q, p_k, p_v, p_lse, p_delta, p_grad_k, p_grad_v,
    queries, keys, heads, D, run,
    q_n, q_l, q_h, k_n, k_l, k_h, v_n, v_l, v_h, part,
    factor, scale,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr, WHOLE: tl.constexpr,
):  # fmt: skip
    i_head, i_run = tl.program_id(1), tl.program_id(2)
    o_k = tl.program_id(0) * BLOCK_K + tl.arange(0, BLOCK_K)
    row, image = heads * D, queries.to(tl.int64) * heads * D
    b_k = _rows(p_k, i_head, o_k, keys, k_n, k_l, k_h, heads, D, BLOCK_D)
    b_v = _rows(p_v, i_head, o_k, keys, v_n, v_l, v_h, heads, D, BLOCK_D)
    grad_k = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    grad_v = tl.zeros((BLOCK_K, BLOCK_D), tl.float32)
    p_rows = i_head.to(tl.int64) * queries
    for start in range(i_run * run, tl.minimum((i_run + 1) * run, queries), BLOCK_Q):
        o_q = start + tl.arange(0, BLOCK_Q)
        m_q = o_q < queries
        b_q = _rows(p_q, i_head, o_q, queries, q_n, q_l, q_h, heads, D, BLOCK_D)
        b_grad = _rows(p_grad, i_head, o_q, queries, image, row, D, heads, D, BLOCK_D)
        shift = tl.load(p_lse + p_rows + o_q, m_q, other=0.0) * 1.4426950408889634
        delta = tl.load(p_delta + p_rows + o_q, m_q, other=0.0)
        # Keys by queries, so that P and grad_S multiply as they are.
        grad_p = _dot(b_v, tl.trans(b_grad))
        s = _dot(b_k, tl.trans(b_q)) * factor
        s = tl.where((o_k < keys)[:, None], s, float("-inf"))
        p, sums = _weights(s, grad_p, shift, delta, 0, WHOLE)
        grad_s = p * (grad_p - sums)
        grad_v += _dot(p.to(b_grad.dtype), b_grad)
        grad_k += _dot(grad_s.to(b_q.dtype), b_q)
    o_part = i_run.to(tl.int64) * part
    _store_rows(p_grad_k + o_part, grad_k * scale, i_head, o_k, keys, heads, D, BLOCK_D)
    _store_rows(p_grad_v + o_part, grad_v, i_head, o_k, keys, heads, D, BLOCK_D)


@triton.jit
def reduced_kv_attention_sum_runs_kernel(p_parts, p_sum, count, runs, BLOCK: tl.constexpr):
    o = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in range(runs):
        total += tl.load(p_parts + o, o < count, other=0.0)
        p_parts += count
    tl.store(p_sum + o, total.to(p_sum.dtype.element_ty), o < count)


@dataclass(frozen=True)
class Tile:
    """Queries and keys of a block, and the warps of a program."""

    queries: int
    keys: int
    warps: int


SUM_BLOCK = 1024
#: Runs of queries per head are cut until about this many programs feed the GPU.
WANTED_PROGRAMS = 256
#: By bytes of an element and the padded head width: forward, backward by queries, by keys.
TILES: dict[tuple[int, int], tuple[Tile, Tile, Tile]] = {
    (2, 64): (Tile(128, 64, 4), Tile(64, 64, 4), Tile(64, 64, 4)),
    (2, 128): (Tile(128, 64, 8), Tile(64, 64, 4), Tile(32, 64, 8)),
    (2, 256): (Tile(64, 32, 8), Tile(64, 32, 8), Tile(32, 32, 8)),
    (4, 64): (Tile(32, 32, 4), Tile(32, 32, 4), Tile(32, 32, 4)),
    (4, 128): (Tile(32, 32, 8), Tile(32, 32, 4), Tile(32, 32, 8)),
    (4, 256): (Tile(32, 16, 8), Tile(32, 16, 8), Tile(16, 16, 8)),
}


def _block_d(d: int) -> int:
    return max(16, int(triton.next_power_of_2(d)))


def _tiles(dtype: torch.dtype, d: int) -> tuple[Tile, Tile, Tile]:
    return TILES[dtype.itemsize, max(64, _block_d(d))]


def _strides(*tensors: Tensor) -> tuple[int, ...]:
    return tuple(stride for tensor in tensors for stride in tensor.stride()[:3])


def _device_of(x: Tensor) -> AbstractContextManager[object]:
    return torch.cuda.device_of(x) if x.is_cuda else nullcontext()


@cache
def _stages(device: torch.device | None) -> int:
    """Blocks in flight: three need the shared memory of sm_80, sm_90 and sm_100."""
    if device is None or device.type != "cuda":
        return 3
    shared = torch.cuda.get_device_properties(device).shared_memory_per_block_optin
    return 3 if shared >= 160 * 1024 else 1


def _launch(tile: Tile, d: int, device: torch.device | None = None) -> dict[str, int]:
    return {
        "num_stages": _stages(device),
        "BLOCK_Q": tile.queries,
        "BLOCK_K": tile.keys,
        "BLOCK_D": _block_d(d),
        "num_warps": tile.warps,
    }


def forward(q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor) -> None:
    """Fills ``out`` (N, Lq, heads, d) and ``lse`` (N, heads, Lq)."""
    n, queries, heads, d = q.shape
    tile = _tiles(q.dtype, d)[0]
    grid = (triton.cdiv(queries, tile.queries), n * heads)
    with _device_of(q):
        reduced_kv_attention_forward_kernel[grid](
            *(q, k, v, out, lse),
            *(queries, k.shape[1], heads, d),
            *_strides(q, k, v),
            scale / math.log(2),
            **_launch(tile, d, q.device),
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
    """Fills the gradients of q, k and v; ``grad`` and ``out`` are dense."""
    n, queries, heads, d = q.shape
    keys, strides, factor = k.shape[1], _strides(q, k, v), scale / math.log(2)
    grad_q, grad_k, grad_v = grads
    _, by_queries, by_keys = _tiles(q.dtype, d)
    runs, run = _runs(n * heads * triton.cdiv(keys, by_keys.keys), queries, by_keys.queries)
    delta = torch.empty_like(lse)
    parts_k, parts_v = grad_k, grad_v
    if runs > 1:
        parts_k, parts_v = torch.empty((2, runs, *k.shape), dtype=lse.dtype, device=q.device)
    with _device_of(q):
        reduced_kv_attention_backward_q_kernel[triton.cdiv(queries, by_queries.queries), n * heads](
            *(grad, q, k, v, out, lse, grad_q, delta),
            *(queries, keys, heads, d),
            *strides,
            *(factor, scale),
            **_launch(by_queries, d, q.device),
            WHOLE=keys <= by_queries.keys,
        )
        reduced_kv_attention_backward_kv_kernel[triton.cdiv(keys, by_keys.keys), n * heads, runs](
            *(grad, q, k, v, lse, delta, parts_k, parts_v),
            *(queries, keys, heads, d, run),
            *strides,
            k.numel(),
            *(factor, scale),
            **_launch(by_keys, d, q.device),
            WHOLE=keys <= by_keys.keys,
        )
        if runs > 1:
            for parts, total in ((parts_k, grad_k), (parts_v, grad_v)):
                reduced_kv_attention_sum_runs_kernel[(triton.cdiv(k.numel(), SUM_BLOCK),)](
                    parts, total, k.numel(), runs, BLOCK=SUM_BLOCK
                )


def _runs(programs: int, queries: int, block: int) -> tuple[int, int]:
    """How many runs a head's queries are cut into, and the length of each, in whole blocks."""
    blocks = triton.cdiv(queries, block)
    runs = max(1, min(triton.cdiv(WANTED_PROGRAMS, programs), blocks // 4))
    length = triton.cdiv(blocks, runs) * block
    return triton.cdiv(queries, length), length


def shipped_configurations() -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """Every variant the network's head widths launch, for benchmarks/triton_resources.py."""
    return [
        configuration
        for name, dtype in (
            ("bf16", torch.bfloat16),
            ("fp16", torch.float16),
            ("fp32", torch.float32),
        )
        for d in (64, 80, 128, 160, 256)
        if name != "fp16" or d == 64
        for configuration in _configurations(name, dtype, d)
    ]


def _configurations(name: str, dtype: torch.dtype, d: int) -> list[Any]:
    kernels = (
        reduced_kv_attention_forward_kernel,
        reduced_kv_attention_backward_q_kernel,
        reduced_kv_attention_backward_kv_kernel,
    )
    found = []
    for kernel, tile in zip(kernels, _tiles(dtype, d), strict=True):
        for whole in (False, True) if "WHOLE" in kernel.arg_names else (False,):
            constants = {k: v for k, v in _launch(tile, d).items() if k in kernel.arg_names}
            if "WHOLE" in kernel.arg_names:
                constants["WHOLE"] = whole
            types = {a: _type(a, name) for a in kernel.arg_names if a not in constants}
            found.append(
                (kernel, types, constants, {"num_warps": tile.warps, "num_stages": _stages(None)})
            )
    return found


def _type(argument: str, name: str) -> str:
    if argument in ("p_lse", "p_delta"):
        return "*fp32:16"
    if argument.startswith("p_"):
        return f"*{name}:16"
    if argument in ("factor", "scale"):
        return "fp32"
    return "i32" if argument in ("queries", "keys", "heads", "run") else "i32:16"
