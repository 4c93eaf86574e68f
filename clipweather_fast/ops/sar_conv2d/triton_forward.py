"""sar_conv2d in Triton: one program filters a tile of pixels of a block of channels.

The K maps are gated in registers; at each tap the program mixes the K kernels for its pixels and
multiplies the mix with the neighbours, which come nine times from L1 and about 1.5 times from L2.
That is K multiply-adds per tap and element after folding the softmax (see pack_kernels_kernel);
memory bounds it in fp32, instruction issue in 16-bit formats. depthwise_conv2d is the case of no
mixed kernels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipweather_fast.ops.sar_conv2d.triton_tiles import (
    gated_maps,
    gelu,
    neighbours,
    tile_pixels,
)


@triton.jit
def mixed_kernel(p_tap, c, m_c, maps, MIXED: tl.constexpr, PLAIN: tl.constexpr):
    """Σₙ maps[n] · kernelₙ of one tap, plus the plain kernel: (P, BLOCK_C) or (1, BLOCK_C)."""
    if PLAIN:
        kernel = tl.load(p_tap + MIXED * c, mask=m_c, other=0.0)[None, :]
        for n in tl.static_range(MIXED):
            kernel += maps[n][:, None] * tl.load(p_tap + n * c, mask=m_c, other=0.0)[None, :]
    else:
        kernel = maps[0][:, None] * tl.load(p_tap, mask=m_c, other=0.0)[None, :]
        for n in tl.static_range(1, MIXED):
            kernel += maps[n][:, None] * tl.load(p_tap + n * c, mask=m_c, other=0.0)[None, :]
    return kernel


@triton.jit(do_not_specialize=["h", "w", "s_n", "s_k", "s_h", "s_w"])
def sar_conv2d_forward_kernel(
    p_x,  # (N, H, W, C)
    p_logits,  # (N, K, H, W) with any strides, or None
    p_packed,  # (k·k + 1, MIXED + PLAIN, C) fp32
    p_y,  # (N, H, W, C)
    p_residual,  # (N, H, W, C) or None
    c,
    h,
    w,
    s_n,
    s_k,
    s_h,
    s_w,
    KERNELS: tl.constexpr,
    MIXED: tl.constexpr,
    PLAIN: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    GATE: tl.constexpr,
    GELU: tl.constexpr,
    BIAS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    P: tl.constexpr = TILE_H * TILE_W
    PADDING: tl.constexpr = KERNEL_SIZE // 2
    BASES: tl.constexpr = MIXED + PLAIN
    RESIDUAL: tl.constexpr = p_residual is not None
    blocks = tl.cdiv(c, BLOCK_C)
    pixel, o_h, o_w, m_p = tile_pixels(tl.program_id(0) // blocks, h, w, TILE_H, TILE_W)
    o_c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < c
    o_x = pixel[:, None] * c + o_c[None, :]
    maps = ()
    if KERNELS > 0:
        i_n = pixel // (h.to(tl.int64) * w)
        o_l = i_n * s_n + o_h.to(tl.int64) * s_h + o_w.to(tl.int64) * s_w
        maps = gated_maps(p_logits, o_l, m_p, s_k, KERNELS, GATE)
    y = tl.zeros([P, BLOCK_C], tl.float32)
    residual = tl.zeros([P, BLOCK_C], tl.float32)
    for i in range(KERNEL_SIZE):
        for j in tl.static_range(KERNEL_SIZE):
            x = neighbours(p_x, o_x, c, h, w, o_h, o_w, m_p, m_c, i - PADDING, j - PADDING)
            p_tap = p_packed + (i * KERNEL_SIZE + j) * BASES * c + o_c
            if RESIDUAL:
                residual += x * mixed_kernel(p_tap, c, m_c, maps, MIXED, False)
                if PLAIN:
                    y += x * tl.load(p_tap + MIXED * c, mask=m_c, other=0.0)[None, :]
            else:
                y += x * mixed_kernel(p_tap, c, m_c, maps, MIXED, PLAIN)
    if BIAS:
        p_tap = p_packed + KERNEL_SIZE * KERNEL_SIZE * BASES * c + o_c
        if RESIDUAL:
            residual += mixed_kernel(p_tap, c, m_c, maps, MIXED, False)
            if PLAIN:
                y += tl.load(p_tap + MIXED * c, mask=m_c, other=0.0)[None, :]
        else:
            y += mixed_kernel(p_tap, c, m_c, maps, MIXED, PLAIN)
    m_y = m_p[:, None] & m_c[None, :]
    if RESIDUAL:
        tl.store(p_residual + o_x, residual.to(p_residual.dtype.element_ty), mask=m_y)
        y += residual
    if GELU:
        y = gelu(y)
    tl.store(p_y + o_x, y.to(p_y.dtype.element_ty), mask=m_y)
