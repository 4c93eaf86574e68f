"""The gradients of sar_conv2d in Triton: three passes over the image and one over partial sums.

1. maps: recomputes what the activation saw, stores g = ∂L/∂(pre-activation) and the gated maps in
   fp32, and writes the gradient of the logits. One program runs through all channels of its
   pixels, so the sum over C has a fixed order.
2. kernels: a program sums over a run of tiles in registers and writes one fp32 partial of the
   kernels' gradients; a second kernel adds the partials in a fixed order. No atomics.
3. image: gathers the gradient of x from g and the maps.

Passes 2 and 3 both read g nine times from L1, but 2 needs the registers for its sums and 3 for its
pixels; one kernel for both would spill.
"""

from __future__ import annotations

import triton
import triton.language as tl

from clipweather_fast.ops.sar_conv2d.triton_tiles import (
    gated_maps,
    gelu_gradient,
    inside,
    neighbours,
    tile_pixels,
    zero_sums,
)


@triton.jit(do_not_specialize=["h", "w", "s_n", "s_k", "s_h", "s_w", "t_n", "t_k", "t_h", "t_w"])
def sar_conv2d_backward_maps_kernel(
    p_x,  # (N, H, W, C)
    p_logits,  # (N, K, H, W), strides s, or None
    p_packed,  # (k·k + 1, MIXED + PLAIN, C) fp32
    p_grad_y,  # (N, H, W, C)
    p_grad_residual,  # (N, H, W, C) or None
    p_g,  # (N, H, W, C), or None without activation
    p_maps,  # (K, N·H·W) fp32, or None
    p_grad_logits,  # (N, K, H, W), strides t, or None
    pixels,
    c,
    h,
    w,
    s_n,
    s_k,
    s_h,
    s_w,
    t_n,
    t_k,
    t_h,
    t_w,
    KERNELS: tl.constexpr,
    MIXED: tl.constexpr,
    PLAIN: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    GATE: tl.constexpr,
    BIAS: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    P: tl.constexpr = TILE_H * TILE_W
    PADDING: tl.constexpr = KERNEL_SIZE // 2
    BASES: tl.constexpr = MIXED + PLAIN
    GELU: tl.constexpr = p_g is not None
    pixel, o_h, o_w, m_p = tile_pixels(tl.program_id(0), h, w, TILE_H, TILE_W)
    i_n = pixel // (h.to(tl.int64) * w)
    maps = ()
    if KERNELS > 0:
        o_l = i_n * s_n + o_h.to(tl.int64) * s_h + o_w.to(tl.int64) * s_w
        maps = gated_maps(p_logits, o_l, m_p, s_k, KERNELS, GATE)
    grad_maps = zero_sums(MIXED, P, BLOCK_C)
    first = tl.program_id(1) * BLOCK_C
    while first < c:
        o_c = first + tl.arange(0, BLOCK_C)
        m_c = o_c < c
        o_x = pixel[:, None] * c + o_c[None, :]
        m_x = m_p[:, None] & m_c[None, :]
        filtered = zero_sums(BASES, P, BLOCK_C)
        for i in range(KERNEL_SIZE):
            for j in tl.static_range(KERNEL_SIZE):
                x = neighbours(p_x, o_x, c, h, w, o_h, o_w, m_p, m_c, i - PADDING, j - PADDING)
                p_tap = p_packed + (i * KERNEL_SIZE + j) * BASES * c + o_c
                added = ()
                for n in tl.static_range(BASES):
                    kernel = tl.load(p_tap + n * c, mask=m_c, other=0.0)[None, :]
                    added = added + (filtered[n] + x * kernel,)
                filtered = added
        if BIAS:
            p_tap = p_packed + KERNEL_SIZE * KERNEL_SIZE * BASES * c + o_c
            added = ()
            for n in tl.static_range(BASES):
                bias = tl.load(p_tap + n * c, mask=m_c, other=0.0)[None, :]
                added = added + (filtered[n] + bias,)
            filtered = added
        g = tl.load(p_grad_y + o_x, mask=m_x, other=0.0).to(tl.float32)
        if GELU:
            before = tl.zeros([P, BLOCK_C], tl.float32)
            if PLAIN:
                before += filtered[MIXED]
            for n in tl.static_range(MIXED):
                before += maps[n][:, None] * filtered[n]
            g *= gelu_gradient(before)
            tl.store(p_g + o_x, g.to(p_g.dtype.element_ty), mask=m_x)
        if p_grad_residual is not None:
            g += tl.load(p_grad_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
        added = ()
        for n in tl.static_range(MIXED):
            added = added + (grad_maps[n] + g * filtered[n],)
        grad_maps = added
        first += tl.num_programs(1) * BLOCK_C
    if KERNELS > 0:
        # Gradients of the maps up to a common number, which the softmax cancels: folded, they are
        # relative to the last map's.
        mean = tl.zeros([P], tl.float32)
        sums = ()
        for n in tl.static_range(KERNELS):
            if n < MIXED:
                total = tl.sum(grad_maps[n], 1)
            else:
                total = tl.zeros([P], tl.float32)
            mean += maps[n] * total
            sums = sums + (total,)
        o_t = i_n * t_n + o_h.to(tl.int64) * t_h + o_w.to(tl.int64) * t_w
        for n in tl.static_range(KERNELS):
            grad = sums[n]
            if GATE == "softmax":
                grad = maps[n] * (grad - mean)
            elif GATE == "sigmoid":
                grad *= maps[n] * (1.0 - maps[n])
            p_out = p_grad_logits + (o_t + n * t_k)
            tl.store(p_out, grad.to(p_grad_logits.dtype.element_ty), mask=m_p)
            tl.store(p_maps + n * pixels + pixel, maps[n], mask=m_p)


@triton.jit(do_not_specialize=["h", "w", "tiles", "tiles_each"])
def sar_conv2d_backward_kernels_kernel(
    p_x,  # (N, H, W, C)
    p_g,  # (N, H, W, C): gradient of the static branch
    p_grad_residual,  # (N, H, W, C) or None: what the mixed branch receives besides
    p_maps,  # (K, N·H·W) fp32, or None
    p_partials,  # (runs, k·k + 1, SUMS, C) fp32
    pixels,
    c,
    h,
    w,
    tiles,
    tiles_each,
    KERNELS: tl.constexpr,
    SUMS: tl.constexpr,  # K, one more if the static kernel needs its own sum
    KERNEL_SIZE: tl.constexpr,
    ROWS: tl.constexpr,  # rows of the kernel whose taps one program sums
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    P: tl.constexpr = TILE_H * TILE_W
    PARTS: tl.constexpr = KERNEL_SIZE // ROWS
    PADDING: tl.constexpr = KERNEL_SIZE // 2
    i_part = tl.program_id(0) % PARTS
    i_block = tl.program_id(0) // PARTS
    i_run = tl.program_id(1)
    o_c = i_block * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < c
    up = i_part * ROWS - PADDING  # the first row's offset
    sums = zero_sums(ROWS * KERNEL_SIZE * SUMS, P, BLOCK_C)
    bias_sums = zero_sums(SUMS, P, BLOCK_C)
    i_tile = i_run * tiles_each
    end = tl.minimum(i_tile + tiles_each, tiles)
    while i_tile < end:
        pixel, o_h, o_w, m_p = tile_pixels(i_tile, h, w, TILE_H, TILE_W)
        o_x = pixel[:, None] * c + o_c[None, :]
        m_x = m_p[:, None] & m_c[None, :]
        g = tl.load(p_g + o_x, mask=m_x, other=0.0).to(tl.float32)
        g_mixed = g
        if p_grad_residual is not None:
            g_mixed += tl.load(p_grad_residual + o_x, mask=m_x, other=0.0).to(tl.float32)
        weighted = ()
        for n in tl.static_range(KERNELS):
            value = tl.load(p_maps + n * pixels + pixel, mask=m_p, other=0.0)
            weighted = weighted + (value[:, None] * g_mixed,)
        if SUMS > KERNELS:
            weighted = weighted + (g,)
        added = ()
        for i in tl.static_range(ROWS):
            for j in tl.static_range(KERNEL_SIZE):
                x = neighbours(p_x, o_x, c, h, w, o_h, o_w, m_p, m_c, up + i, j - PADDING)
                for n in tl.static_range(SUMS):
                    old = sums[(i * KERNEL_SIZE + j) * SUMS + n]
                    added = added + (old + weighted[n] * x,)
        sums = added
        added = ()
        for n in tl.static_range(SUMS):
            added = added + (bias_sums[n] + weighted[n],)
        bias_sums = added
        i_tile += 1
    p_run = p_partials + i_run.to(tl.int64) * (KERNEL_SIZE * KERNEL_SIZE + 1) * SUMS * c + o_c
    p_part = p_run + i_part * ROWS * KERNEL_SIZE * SUMS * c
    for i in tl.static_range(ROWS * KERNEL_SIZE * SUMS):
        tl.store(p_part + i * c, tl.sum(sums[i], 0), mask=m_c)
    for n in tl.static_range(SUMS):
        p_bias = p_run + (KERNEL_SIZE * KERNEL_SIZE * SUMS + n) * c
        tl.store(p_bias, tl.sum(bias_sums[n], 0), mask=o_c < tl.where(i_part == 0, c, 0))


@triton.jit(do_not_specialize=["runs"])
def sar_conv2d_backward_sums_kernel(
    p_partials,  # (runs, k·k + 1, SUMS, C) fp32
    p_grad_weight,  # (K, C, k, k) or None
    p_grad_bias,  # (K, C) or None
    p_grad_static_weight,  # (C, k, k) or None
    p_grad_static_bias,  # (C) or None
    runs,
    c,
    KERNELS: tl.constexpr,
    SUMS: tl.constexpr,
    TAPS: tl.constexpr,
    BLOCK_RUNS: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Adds the partials of one tap, or with tap = k·k of the biases, in the order of the runs."""
    tap = tl.program_id(0)
    o_c = tl.program_id(1) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < c
    m_tap = o_c < tl.where(tap < TAPS, c, 0)
    m_bias = o_c < tl.where(tap == TAPS, c, 0)
    static = tl.zeros([BLOCK_C], tl.float32)
    for n in tl.static_range(SUMS):
        total = tl.zeros([BLOCK_RUNS, BLOCK_C], tl.float32)
        first = runs * 0
        while first < runs:
            o_run = first + tl.arange(0, BLOCK_RUNS)
            o_s = ((o_run.to(tl.int64) * (TAPS + 1) + tap) * SUMS + n) * c
            m_s = (o_run < runs)[:, None] & m_c[None, :]
            total += tl.load(p_partials + o_s[:, None] + o_c[None, :], mask=m_s, other=0.0)
            first += BLOCK_RUNS
        value = tl.sum(total, 0)
        if n < KERNELS:
            o_k = n * c + o_c
            grad = value.to(p_grad_weight.dtype.element_ty)
            tl.store(p_grad_weight + o_k * TAPS + tap, grad, mask=m_tap)
            if p_grad_bias is not None:
                grad = value.to(p_grad_bias.dtype.element_ty)
                tl.store(p_grad_bias + o_k, grad, mask=m_bias)
            if SUMS == KERNELS:
                static += value  # the maps add up to 1, and so do the kernels' gradients
        else:
            static = value
    if p_grad_static_weight is not None:
        grad = static.to(p_grad_static_weight.dtype.element_ty)
        tl.store(p_grad_static_weight + o_c * TAPS + tap, grad, mask=m_tap)
    if p_grad_static_bias is not None:
        grad = static.to(p_grad_static_bias.dtype.element_ty)
        tl.store(p_grad_static_bias + o_c, grad, mask=m_bias)


@triton.jit(do_not_specialize=["h", "w"])
def sar_conv2d_backward_image_kernel(
    p_g,  # (N, H, W, C)
    p_grad_residual,  # (N, H, W, C) or None
    p_maps,  # (K, N·H·W) fp32, or None
    p_packed,  # (k·k + 1, MIXED + PLAIN, C) fp32
    p_grad_x,  # (N, H, W, C)
    pixels,
    c,
    h,
    w,
    MIXED: tl.constexpr,
    PLAIN: tl.constexpr,
    KERNEL_SIZE: tl.constexpr,
    TILE_H: tl.constexpr,
    TILE_W: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    P: tl.constexpr = TILE_H * TILE_W
    PADDING: tl.constexpr = KERNEL_SIZE // 2
    BASES: tl.constexpr = MIXED + PLAIN
    blocks = tl.cdiv(c, BLOCK_C)
    pixel, o_h, o_w, m_p = tile_pixels(tl.program_id(0) // blocks, h, w, TILE_H, TILE_W)
    o_c = tl.program_id(0) % blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    m_c = o_c < c
    o_x = pixel[:, None] * c + o_c[None, :]
    grad_x = tl.zeros([P, BLOCK_C], tl.float32)
    for i in range(KERNEL_SIZE):
        for j in tl.static_range(KERNEL_SIZE):
            # The pixel that saw this one through the tap (i, j).
            g = neighbours(p_g, o_x, c, h, w, o_h, o_w, m_p, m_c, PADDING - i, PADDING - j)
            p_tap = p_packed + (i * KERNEL_SIZE + j) * BASES * c + o_c
            if PLAIN:
                grad_x += g * tl.load(p_tap + MIXED * c, mask=m_c, other=0.0)[None, :]
            if p_grad_residual is not None:
                p_r = p_grad_residual
                g += neighbours(p_r, o_x, c, h, w, o_h, o_w, m_p, m_c, PADDING - i, PADDING - j)
            if MIXED > 0:
                m_map = m_p & inside(o_h, o_w, h, w, PADDING - i, PADDING - j)
                o_map = pixel + (w.to(tl.int64) * (PADDING - i) + (PADDING - j))
                value = tl.load(p_maps + o_map, mask=m_map, other=0.0)[:, None]
                kernel = value * tl.load(p_tap, mask=m_c, other=0.0)[None, :]
                for n in tl.static_range(1, MIXED):
                    value = tl.load(p_maps + n * pixels + o_map, mask=m_map, other=0.0)[:, None]
                    kernel += value * tl.load(p_tap + n * c, mask=m_c, other=0.0)[None, :]
                grad_x += g * kernel
    m_x = m_p[:, None] & m_c[None, :]
    tl.store(p_grad_x + o_x, grad_x.to(p_grad_x.dtype.element_ty), mask=m_x)
