"""sar_conv2d and depthwise_conv2d in Triton: the launches.

The kernels are in triton_forward.py and triton_backward.py, their variants and tiles in
triton_variants.py. No launch waits for the device, so a CUDA graph can capture them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from clipweather_fast.ops._layout import channels_last
from clipweather_fast.ops.sar_conv2d.triton_backward import (
    sar_conv2d_backward_image_kernel,
    sar_conv2d_backward_kernels_kernel,
    sar_conv2d_backward_maps_kernel,
    sar_conv2d_backward_sums_kernel,
)
from clipweather_fast.ops.sar_conv2d.triton_forward import sar_conv2d_forward_kernel
from clipweather_fast.ops.sar_conv2d.triton_tiles import pack_kernels_kernel
from clipweather_fast.ops.sar_conv2d.triton_variants import (
    FULL_DEVICE,
    OPTIONS,
    Variant,
    block_c,
    shipped_variants,
)

__all__ = [
    "Parameters",
    "backward",
    "backward_image",
    "backward_kernels",
    "forward",
    "shipped_configurations",
    "specialised",
]

#: Partial sums that one step of the last pass adds at once.
BLOCK_RUNS = 32


class Parameters(NamedTuple):
    """The shared kernels of a call; an absent one is None."""

    weight: Tensor | None
    bias: Tensor | None
    static_weight: Tensor | None
    static_bias: Tensor | None

    def variant(self, x: Tensor, gate: str, activation: str, residual: bool) -> Variant:
        shaped = self.static_weight if self.weight is None else self.weight
        if shaped is None:
            raise ValueError("sar_conv2d: neither weight nor static_weight is given")
        n, c, h, w = x.shape
        return Variant(
            n,
            c,
            h,
            w,
            kernels=0 if self.weight is None else self.weight.shape[0],
            kernel_size=shaped.shape[-1],
            gate=gate,
            gelu=activation == "gelu",
            bias=self.bias is not None or self.static_bias is not None,
            static=self.static_weight is not None,
            residual=residual,
        )

    def packed(self, x: Tensor, v: Variant) -> Tensor:
        """(k·k + 1, MIXED + PLAIN, C) fp32, see pack_kernels_kernel."""
        taps = v.kernel_size**2
        packed = x.new_empty(taps + 1, v.mixed + v.plain, v.c, dtype=torch.float32)
        dense = [None if p is None else p.contiguous() for p in self]
        block = block_c(v.c, 256)
        pack_kernels_kernel[(taps + 1, triton.cdiv(v.c, block))](
            *dense, packed, v.c, v.kernels, taps, v.folded, block, **OPTIONS
        )
        return packed


def writable(image: Tensor) -> Tensor:
    """The dense (N, H, W, C) tensor a kernel fills: ``image`` itself, else one to copy from."""
    if image.is_contiguous(memory_format=torch.channels_last):
        return image
    return torch.empty_like(image, memory_format=torch.channels_last)


def copy_back(image: Tensor, filled: Tensor) -> None:
    """Puts the result where the caller wants it, if :func:`writable` gave another tensor."""
    if filled is not image:
        image.copy_(filled)


def strides(logits: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0) if logits is None else logits.stride()


def forward(
    x: Tensor,
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    activation: str,
    y: Tensor,
    residual: Tensor | None,
) -> None:
    """Fills ``y``, and ``residual`` if it has elements."""
    if residual is not None and residual.numel() == 0:
        residual = None
    parameters = Parameters(weight, bias, static_weight, static_bias)
    with torch.cuda.device_of(x):
        v = parameters.variant(x, gate, activation, residual is not None)
        constants = v.forward_constants()
        y_filled = writable(y)
        residual_filled = None if residual is None else writable(residual)
        sar_conv2d_forward_kernel[(v.tiles(constants) * v.blocks(constants),)](
            channels_last(x),
            logits,
            parameters.packed(x, v),
            y_filled,
            residual_filled,
            v.c,
            v.h,
            v.w,
            *strides(logits),
            **constants,
            **OPTIONS,
        )
        copy_back(y, y_filled)
        if residual is not None and residual_filled is not None:
            copy_back(residual, residual_filled)


def backward(
    grad_y: Tensor | None,
    grad_residual: Tensor | None,
    x: Tensor,
    logits: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    activation: str,
    grads: tuple[Tensor | None, ...],
) -> None:
    """Fills ``grads``: of x, logits and the four parameters, in the order of the arguments."""
    parameters = Parameters(weight, bias, static_weight, static_bias)
    with torch.cuda.device_of(x):
        v = parameters.variant(x, gate, activation, grad_residual is not None)
        x = channels_last(x)
        g = torch.zeros_like(x) if grad_y is None else channels_last(grad_y)
        if grad_residual is not None:
            grad_residual = channels_last(grad_residual)
        packed = parameters.packed(x, v)
        g, maps = _backward_maps(v, x, logits, packed, g, grad_residual, grads[1])
        present = [p is not None for p in parameters]
        backward_kernels(
            v,
            x,
            g,
            grad_residual,
            maps,
            [grad if wanted else None for grad, wanted in zip(grads[2:], present, strict=True)],
        )
        if grads[0] is not None:
            backward_image(v, g, grad_residual, maps, packed, grads[0])


def _backward_maps(
    v: Variant,
    x: Tensor,
    logits: Tensor | None,
    packed: Tensor,
    grad_y: Tensor,
    grad_residual: Tensor | None,
    grad_logits: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Fills ``grad_logits``; gives the gradient before the activation and the gated maps."""
    if not v.kernels and not v.gelu:
        return grad_y, None
    pixels = v.n * v.h * v.w
    g = torch.empty_like(x) if v.gelu else None
    maps = x.new_empty(v.kernels, pixels, dtype=torch.float32) if v.kernels else None
    constants = v.maps_constants()
    # With maps one program sums over all channels; without, the channels are spread out.
    sar_conv2d_backward_maps_kernel[(v.tiles(constants), 1 if v.kernels else v.blocks(constants))](
        x,
        logits,
        packed,
        grad_y,
        grad_residual,
        g,
        maps,
        grad_logits if v.kernels else None,
        pixels,
        v.c,
        v.h,
        v.w,
        *strides(logits),
        *strides(grad_logits if v.kernels else None),
        **constants,
        **OPTIONS,
    )
    return grad_y if g is None else g, maps


def backward_kernels(
    v: Variant,
    x: Tensor,
    g: Tensor,
    grad_residual: Tensor | None,
    maps: Tensor | None,
    grads: list[Tensor | None],
) -> None:
    """Fills the gradients of weight, bias, static_weight and static_bias that are not None."""
    constants = v.kernels_constants()
    tiles, blocks = v.tiles(constants), v.blocks(constants)
    parts = v.kernel_size // constants["ROWS"]
    tiles_each = triton.cdiv(tiles, min(tiles, max(1, FULL_DEVICE // (parts * blocks))))
    runs = triton.cdiv(tiles, tiles_each)
    taps = v.kernel_size**2
    partials = x.new_empty(runs, taps + 1, v.sums, v.c, dtype=torch.float32)
    sar_conv2d_backward_kernels_kernel[(parts * blocks, runs)](
        x,
        g,
        grad_residual,
        maps,
        partials,
        v.n * v.h * v.w,
        v.c,
        v.h,
        v.w,
        tiles,
        tiles_each,
        **constants,
        **OPTIONS,
    )
    block = block_c(v.c, 32)
    sar_conv2d_backward_sums_kernel[(taps + 1, triton.cdiv(v.c, block))](
        partials,
        *grads,
        runs,
        v.c,
        v.kernels,
        v.sums,
        taps,
        BLOCK_RUNS,
        block,
        **OPTIONS,
    )


def backward_image(
    v: Variant,
    g: Tensor,
    grad_residual: Tensor | None,
    maps: Tensor | None,
    packed: Tensor,
    grad_x: Tensor,
) -> None:
    """Fills the gradient of x."""
    constants = v.image_constants()
    filled = writable(grad_x)
    sar_conv2d_backward_image_kernel[(v.tiles(constants) * v.blocks(constants),)](
        g,
        grad_residual,
        maps,
        packed,
        filled,
        v.n * v.h * v.w,
        v.c,
        v.h,
        v.w,
        **constants,
        **OPTIONS,
    )
    copy_back(grad_x, filled)


def shipped_configurations() -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]]:
    """See benchmarks/triton_resources.py."""
    found: dict[str, tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]] = {}
    for v in shipped_variants():
        for dtype in ("fp32", "bf16", "fp16"):
            for kernel, signature, constants in _launches(v, f"*{dtype}:16"):
                configuration = (kernel, signature, constants, OPTIONS)
                found[repr((kernel.__name__, signature, constants))] = configuration
    return list(found.values())


def _launches(v: Variant, image: str) -> list[tuple[Any, dict[str, str], dict[str, Any]]]:
    """The kernels of a forward and backward pass with fp32 parameters, as they are specialised."""
    mixed, fp32 = v.kernels > 0, "*fp32:16"
    sizes = {"c": "i32:16", "h": "i32", "w": "i32"}
    logits = dict.fromkeys(("s_n", "s_k", "s_h", "s_w"), "i32")
    grad_logits = dict.fromkeys(("t_n", "t_k", "t_h", "t_w"), "i32")
    maps_constants = v.maps_constants()
    kernels_constants = v.kernels_constants()
    uses = {
        sar_conv2d_forward_kernel: (
            {
                "p_x": image,
                "p_logits": image if mixed else None,
                "p_packed": fp32,
                "p_y": image,
                "p_residual": image if v.residual else None,
                **sizes,
                **logits,
            },
            v.forward_constants(),
        ),
        sar_conv2d_backward_maps_kernel: (
            {
                "p_x": image,
                "p_logits": image if mixed else None,
                "p_packed": fp32,
                "p_grad_y": image,
                "p_grad_residual": image if v.residual else None,
                "p_g": image if v.gelu else None,
                "p_maps": fp32 if mixed else None,
                "p_grad_logits": image if mixed else None,
                "pixels": "i32:16",
                **sizes,
                **logits,
                **grad_logits,
            },
            maps_constants,
        ),
        sar_conv2d_backward_kernels_kernel: (
            {
                "p_x": image,
                "p_g": image,
                "p_grad_residual": image if v.residual else None,
                "p_maps": fp32 if mixed else None,
                "p_partials": fp32,
                "pixels": "i32:16",
                **sizes,
                "tiles": "i32",
                "tiles_each": "i32",
            },
            kernels_constants,
        ),
        sar_conv2d_backward_image_kernel: (
            {
                "p_g": image,
                "p_grad_residual": image if v.residual else None,
                "p_maps": fp32 if mixed else None,
                "p_packed": fp32,
                "p_grad_x": image,
                "pixels": "i32:16",
                **sizes,
            },
            v.image_constants(),
        ),
    }
    return [specialised(kernel, *use) for kernel, use in uses.items()]


def specialised(
    kernel: Any, arguments: Mapping[str, str | None], constants: dict[str, Any]
) -> tuple[Any, dict[str, str], dict[str, Any]]:
    """The absent arguments (None) moved to the compile-time ones."""
    absent = {name: None for name, kind in arguments.items() if kind is None}
    present = {name: kind for name, kind in arguments.items() if kind is not None}
    return kernel, present, {**constants, **absent}
