"""sar_logits in Triton: one program predicts the maps of a tile of pixels from all their channels.

The hidden tensor GELU(DWConv(x)) lives in registers, a block of channels at a time; K sums over the
channels stay with it. Memory bounds it in fp32, instruction issue in 16-bit formats. Backward
recomputes the hidden tensor, stores the gradient before GELU and goes on as depthwise_conv2d does.
A program of its first pass owns a block of channels of a run of tiles, so that the gradient of
pointwise_weight is summed in registers; partial sums are added in a fixed order, without atomics.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clipweather_fast.ops._layout import channels_last
from clipweather_fast.ops.sar_conv2d.triton_backward import sar_conv2d_backward_sums_kernel
from clipweather_fast.ops.sar_conv2d.triton_kernels import (
    BLOCK_RUNS,
    Parameters,
    backward_image,
    backward_kernels,
    specialised,
)
from clipweather_fast.ops.sar_conv2d.triton_tiles import (
    gelu,
    gelu_gradient,
    neighbours,
    tile_pixels,
    zero_sums,
)
from clipweather_fast.ops.sar_conv2d.triton_variants import (
    FULL_DEVICE,
    OPTIONS,
    SHIPPED_IMAGES,
    Variant,
    block_c,
    sides,
)

__all__ = ["backward", "forward", "shipped_configurations"]


@triton.jit
def hidden_before_gelu(p_x, p_packed, o_x, o_c, c, h, w, o_h, o_w, m_p, m_c):
    """DWConv(x) of the tile: (P, BLOCK_C) fp32."""
    hidden = tl.zeros([o_h.shape[0], o_c.shape[0]], tl.float32)
    hidden += tl.load(p_packed + 9 * c + o_c, mask=m_c, other=0.0)[None, :]
    for i in range(3):
        for j in tl.static_range(3):
            x = neighbours(p_x, o_x, c, h, w, o_h, o_w, m_p, m_c, i - 1, j - 1)
            p_tap = p_packed + (i * 3 + j) * c + o_c
            hidden += x * tl.load(p_tap, mask=m_c, other=0.0)[None, :]
    return hidden


@triton.jit(do_not_specialize=["h", "w", "s_n", "s_k", "s_h", "s_w"])
def sar_logits_forward_kernel(
    p_x,  # (N, H, W, C)
    p_packed,  # (10, C) fp32: the depthwise kernel by tap, then its bias
    p_pointwise,  # (K, C)
    p_bias,  # (K)
    p_logits,  # (N, K, H, W), strides s
    c,
    h,
    w,
    s_n,
    s_k,
    s_h,
    s_w,
    KERNELS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    P: tl.constexpr = TILE_H * TILE_W
    pixel, o_h, o_w, m_p = tile_pixels(tl.program_id(0), h, w, TILE_H, TILE_W)
    sums = zero_sums(KERNELS, P, BLOCK_C)
    first = tl.program_id(0) * 0
    while first < c:
        o_c = first + tl.arange(0, BLOCK_C)
        m_c = o_c < c
        o_x = pixel[:, None] * c + o_c[None, :]
        hidden = hidden_before_gelu(p_x, p_packed, o_x, o_c, c, h, w, o_h, o_w, m_p, m_c)
        hidden = gelu(hidden)
        added = ()
        for n in tl.static_range(KERNELS):
            weight = tl.load(p_pointwise + n * c + o_c, mask=m_c, other=0.0).to(tl.float32)
            added = added + (sums[n] + hidden * weight[None, :],)
        sums = added
        first += BLOCK_C
    i_n = pixel // (h.to(tl.int64) * w)
    o_l = i_n * s_n + o_h.to(tl.int64) * s_h + o_w.to(tl.int64) * s_w
    for n in tl.static_range(KERNELS):
        value = tl.sum(sums[n], 1) + tl.load(p_bias + n).to(tl.float32)
        tl.store(p_logits + (o_l + n * s_k), value.to(p_logits.dtype.element_ty), mask=m_p)


@triton.jit(do_not_specialize=["h", "w", "s_n", "s_k", "s_h", "s_w", "tiles", "tiles_each"])
def sar_logits_backward_kernel(
    p_x,  # (N, H, W, C)
    p_packed,  # (10, C) fp32
    p_pointwise,  # (K, C)
    p_grad_logits,  # (N, K, H, W), strides s
    p_g,  # (N, H, W, C): gradient before GELU
    p_partials,  # (runs, K, C) fp32
    c,
    h,
    w,
    s_n,
    s_k,
    s_h,
    s_w,
    tiles,
    tiles_each,
    KERNELS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    P: tl.constexpr = TILE_H * TILE_W
    o_c = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < c
    sums = zero_sums(KERNELS, P, BLOCK_C)
    i_tile = tl.program_id(1) * tiles_each
    end = tl.minimum(i_tile + tiles_each, tiles)
    while i_tile < end:
        pixel, o_h, o_w, m_p = tile_pixels(i_tile, h, w, TILE_H, TILE_W)
        o_x = pixel[:, None] * c + o_c[None, :]
        hidden = hidden_before_gelu(p_x, p_packed, o_x, o_c, c, h, w, o_h, o_w, m_p, m_c)
        after = gelu(hidden)
        i_n = pixel // (h.to(tl.int64) * w)
        o_l = i_n * s_n + o_h.to(tl.int64) * s_h + o_w.to(tl.int64) * s_w
        g = tl.zeros([P, BLOCK_C], tl.float32)
        added = ()
        for n in tl.static_range(KERNELS):
            grad = tl.load(p_grad_logits + (o_l + n * s_k), mask=m_p, other=0.0).to(tl.float32)
            weight = tl.load(p_pointwise + n * c + o_c, mask=m_c, other=0.0).to(tl.float32)
            g += grad[:, None] * weight[None, :]
            added = added + (sums[n] + grad[:, None] * after,)
        sums = added
        g *= gelu_gradient(hidden)
        tl.store(p_g + o_x, g.to(p_g.dtype.element_ty), mask=m_p[:, None] & m_c[None, :])
        i_tile += 1
    p_run = p_partials + tl.program_id(1).to(tl.int64) * KERNELS * c + o_c
    for n in tl.static_range(KERNELS):
        tl.store(p_run + n * c, tl.sum(sums[n], 0), mask=m_c)


def _variant(x: Tensor) -> Variant:
    """The depthwise convolution inside, as a call of sar_conv2d."""
    n, c, h, w = x.shape
    return Variant(n, c, h, w, 0, 3, "none", gelu=False, bias=True, static=True, residual=False)


def forward_constants(v: Variant, kernels: int) -> dict[str, Any]:
    """8 elements per thread; 4 where 8 would leave multiprocessors idle or K sums need room."""
    tile = sides(4, 4)
    if kernels > 4 or v.tiles(tile) < FULL_DEVICE:
        tile = sides(2, 4)
    return {"KERNELS": kernels, **tile, "BLOCK_C": block_c(v.c, 64)}


def backward_constants(v: Variant, kernels: int) -> dict[str, Any]:
    tile = sides(2, 4) if kernels > 4 else sides(4, 4)
    return {"KERNELS": kernels, **tile, "BLOCK_C": block_c(v.c, 64)}


def forward(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    logits: Tensor,
) -> None:
    """Fills ``logits`` (N, K, H, W), of any strides."""
    with torch.cuda.device_of(x):
        v = _variant(x)
        constants = forward_constants(v, pointwise_weight.shape[0])
        sar_logits_forward_kernel[(v.tiles(constants),)](
            channels_last(x),
            Parameters(None, None, depthwise_weight, depthwise_bias).packed(x, v),
            pointwise_weight.contiguous(),
            pointwise_bias.contiguous(),
            logits,
            v.c,
            v.h,
            v.w,
            *logits.stride(),
            **constants,
            **OPTIONS,
        )


def backward(
    grad_logits: Tensor,
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    grads: tuple[Tensor, ...],
) -> None:
    """Fills ``grads``: of x and the four parameters, in the order of the arguments."""
    with torch.cuda.device_of(x):
        v = _variant(x)
        x = channels_last(x)
        packed = Parameters(None, None, depthwise_weight, depthwise_bias).packed(x, v)
        g = torch.empty_like(x, memory_format=torch.channels_last)
        _backward_pointwise(v, grad_logits, x, packed, pointwise_weight.contiguous(), g, grads[3])
        grads[4].copy_(grad_logits.sum((0, 2, 3), dtype=torch.float32))
        backward_kernels(v, x, g, None, None, [None, None, grads[1], grads[2]])
        backward_image(v, g, None, None, packed, grads[0])


def _backward_pointwise(
    v: Variant,
    grad_logits: Tensor,
    x: Tensor,
    packed: Tensor,
    pointwise_weight: Tensor,
    g: Tensor,
    grad_pointwise_weight: Tensor,
) -> None:
    """Fills ``g``, the gradient before GELU, and the gradient of pointwise_weight."""
    kernels = pointwise_weight.shape[0]
    constants = backward_constants(v, kernels)
    tiles, blocks = v.tiles(constants), v.blocks(constants)
    # Twice as many programs as sums alone would want: this pass also writes g.
    tiles_each = triton.cdiv(tiles, min(tiles, max(1, 2 * FULL_DEVICE // blocks)))
    runs = triton.cdiv(tiles, tiles_each)
    partials = x.new_empty(runs, kernels, v.c, dtype=torch.float32)
    sar_logits_backward_kernel[(blocks, runs)](
        x,
        packed,
        pointwise_weight,
        grad_logits,
        g,
        partials,
        v.c,
        v.h,
        v.w,
        *grad_logits.stride(),
        tiles,
        tiles_each,
        **constants,
        **OPTIONS,
    )
    # A (K, C) gradient without taps is summed as the biases of K kernels are.
    block = block_c(v.c, 32)
    sar_conv2d_backward_sums_kernel[(1, triton.cdiv(v.c, block))](
        partials,
        grad_pointwise_weight,
        grad_pointwise_weight,
        None,
        None,
        runs,
        v.c,
        kernels,
        kernels,
        0,
        BLOCK_RUNS,
        block,
        **OPTIONS,
    )


def shipped_configurations() -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """See benchmarks/triton_resources.py."""
    found: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = {}
    sizes = dict.fromkeys(("h", "w", "s_n", "s_k", "s_h", "s_w"), "i32") | {"c": "i32:16"}
    for n, c, h, w in SHIPPED_IMAGES:
        v = Variant(n, c, h, w, 0, 3, "none", False, True, True, False)
        for image in ("*fp32:16", "*bf16:16", "*fp16:16"):
            inputs = {"p_x": image, "p_packed": "*fp32:16", "p_pointwise": "*fp32:16"}
            ahead = {**inputs, "p_bias": "*fp32:16", "p_logits": image, **sizes}
            back = {"p_grad_logits": image, "p_g": image, "p_partials": "*fp32:16"}
            back = {**inputs, **back, "tiles": "i32", "tiles_each": "i32", **sizes}
            for use in (
                specialised(sar_logits_forward_kernel, ahead, forward_constants(v, 3)),
                specialised(sar_logits_backward_kernel, back, backward_constants(v, 3)),
            ):
                found[repr((use[0].__name__, *use[1:]))] = (*use, OPTIONS)
    return list(found.values())
