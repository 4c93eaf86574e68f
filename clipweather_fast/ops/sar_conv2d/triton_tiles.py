"""What the Triton kernels of the convolutions share: pixel tiles, gates, packed kernels.

Images are dense (N, H, W, C). A program owns a tile of TILE_H × TILE_W pixels, flattened into one
axis of P = TILE_H · TILE_W, times BLOCK_C neighbouring channels. Square tiles re-read a halo of
(TILE + 2)² / TILE² pixels from L2; a run of pixels of one row would read every row three times.
Rows of taps are a loop, columns are unrolled: with all taps unrolled, the compiler moves every load
to the front and the tile no longer fits the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def tile_pixels(i_tile, h, w, TILE_H: tl.constexpr, TILE_W: tl.constexpr):
    """Of the tile's pixels (P): the flat index in (N, H, W), row, column, and which exist."""
    tiles_w = tl.cdiv(w, TILE_W)
    tiles_h = tl.cdiv(h, TILE_H)
    o_p = tl.arange(0, TILE_H * TILE_W)
    o_h = (i_tile // tiles_w) % tiles_h * TILE_H + o_p // TILE_W
    o_w = i_tile % tiles_w * TILE_W + o_p % TILE_W
    i_n = (i_tile // (tiles_w * tiles_h)).to(tl.int64)
    return (i_n * h + o_h) * w + o_w, o_h, o_w, (o_h < h) & (o_w < w)


@triton.jit
def inside(o_h, o_w, h, w, dh, DW: tl.constexpr):
    """Whether the pixels dh rows down and DW columns right of the tile's exist: (P)."""
    rows = (o_h + dh >= 0) & (o_h + dh < h)
    return rows & (o_w + DW >= 0) & (o_w + DW < w)


@triton.jit
def neighbours(p_image, o_x, c, h, w, o_h, o_w, m_p, m_c, dh, DW: tl.constexpr):
    """The image dh rows down and DW columns right of the tile, (P, BLOCK_C) fp32, 0 outside."""
    step = w.to(tl.int64) * dh + DW
    m_x = (m_p & inside(o_h, o_w, h, w, dh, DW))[:, None] & m_c[None, :]
    return tl.load(p_image + (o_x + step * c), mask=m_x, other=0.0).to(tl.float32)


@triton.jit
def gated_maps(p_logits, o_l, m_p, s_k, KERNELS: tl.constexpr, GATE: tl.constexpr):
    """The K weight maps of the tile's pixels, fp32 (P) each; o_l are the offsets of the first."""
    maps = ()
    for n in tl.static_range(KERNELS):
        value = tl.load(p_logits + (o_l + n * s_k), mask=m_p, other=0.0).to(tl.float32)
        if GATE == "sigmoid":
            value = 1.0 / (1.0 + tl.exp(-value))
        maps = maps + (value,)
    if GATE == "softmax":
        top = maps[0]
        for n in tl.static_range(1, KERNELS):
            top = tl.maximum(top, maps[n])
        raised = ()
        total = tl.zeros_like(top)
        for n in tl.static_range(KERNELS):
            value = tl.exp(maps[n] - top)
            raised = raised + (value,)
            total += value
        maps = ()
        for n in tl.static_range(KERNELS):
            maps = maps + (raised[n] / total,)
    return maps


@triton.jit
def zero_sums(COUNT: tl.constexpr, P: tl.constexpr, BLOCK_C: tl.constexpr):
    """COUNT fp32 sums (P, BLOCK_C), as a tuple."""
    sums = ()
    for _ in tl.static_range(COUNT):
        sums = sums + (tl.zeros([P, BLOCK_C], tl.float32),)
    return sums


@triton.jit
def gelu(v):
    return 0.5 * v * (1.0 + tl.math.erf(v * 0.7071067811865476))


@triton.jit
def gelu_gradient(v):
    density = 0.3989422804014327 * tl.exp(-0.5 * v * v)
    return 0.5 * (1.0 + tl.math.erf(v * 0.7071067811865476)) + v * density


@triton.jit
def pack_kernels_kernel(
    p_weight,  # (K, C, k, k) or None
    p_bias,  # (K, C) or None
    p_static_weight,  # (C, k, k) or None
    p_static_bias,  # (C) or None
    p_packed,  # (k·k + 1, MIXED + PLAIN, C) fp32; the last row holds the biases
    c,
    KERNELS: tl.constexpr,
    TAPS: tl.constexpr,
    FOLDED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Parameters as the other kernels read them: by tap, channels side by side, fp32, folded.

    Folded (the maps add up to 1): Σ Wₙ·Kₙ + S = (S + K_last) + Σ Wₙ·(Kₙ − K_last), so the last
    mixed kernel and the static one are one plain kernel, and K − 1 differences are mixed.
    """
    tap = tl.program_id(0)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < c
    m_tap = o_c < tl.where(tap < TAPS, c, 0)
    m_bias = o_c < tl.where(tap == TAPS, c, 0)
    plain = tl.zeros([BLOCK_C], tl.float32)
    if p_static_weight is not None:
        plain += tl.load(p_static_weight + o_c * TAPS + tap, mask=m_tap, other=0.0).to(tl.float32)
    if p_static_bias is not None:
        plain += tl.load(p_static_bias + o_c, mask=m_bias, other=0.0).to(tl.float32)
    kernels = ()
    for n in tl.static_range(KERNELS):
        o_k = n * c + o_c
        value = tl.load(p_weight + o_k * TAPS + tap, mask=m_tap, other=0.0).to(tl.float32)
        if p_bias is not None:
            value += tl.load(p_bias + o_k, mask=m_bias, other=0.0).to(tl.float32)
        kernels = kernels + (value,)
    MIXED: tl.constexpr = KERNELS - 1 if FOLDED else KERNELS
    PLAIN: tl.constexpr = FOLDED or p_static_weight is not None
    p_row = p_packed + tap * (MIXED + PLAIN) * c + o_c
    for n in tl.static_range(MIXED):
        if FOLDED:
            tl.store(p_row + n * c, kernels[n] - kernels[KERNELS - 1], mask=m_c)
        else:
            tl.store(p_row + n * c, kernels[n], mask=m_c)
    if PLAIN:
        if FOLDED:
            plain += kernels[KERNELS - 1]
        tl.store(p_row + MIXED * c, plain, mask=m_c)
