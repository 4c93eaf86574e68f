"""dense_conv2d on the CPU: matrix products, and the steps around them.

Five ways. A 1×1 kernel is one product. As windows (any kernel): pixels of the coarse image (M, C)
and their windows of the fine one (M, k·k·C') meet in the weight as it lies, (C, k·k·C') in
channels-last memory, which is the same matrix for a convolution and for a transposed one. So, but
with windows that are never in memory: see csrc/dense_conv2d/dense_conv2d_implicit_cpu.cpp. By
Winograd (3×3, stride 1, padding 1), with all points in memory: see
csrc/dense_conv2d/dense_conv2d_winograd_cpu.cpp; or never, in float32 without AMX: see
csrc/dense_conv2d/dense_conv2d_fused_winograd_cpu.cpp.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum

import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops._buffers import filled
from clipweather_fast.ops._layout import channels_last

__all__ = ["backward", "forward", "linear", "linear_gradients"]

#: Up to so many pixels AMX computes 3×3 kernels faster from windows than by Winograd's tiles.
WINOGRAD_PIXELS = 128
#: As kImplicitChannels of csrc/dense_conv2d/dense_conv2d.h: both images have multiples of it where
#: windows are never in memory.
IMPLICIT_CHANNELS = 32
#: As kFusedChannels there: neither image has more where Winograd's points are never all in memory.
FUSED_CHANNELS = 4096


class Wanted(IntEnum):
    """As DenseConv2dWanted of csrc/dense_conv2d/dense_conv2d.h."""

    COARSE = 0
    FINE = 1
    WEIGHT = 2


class Step(IntEnum):
    """As DenseConv2dStep of csrc/dense_conv2d/dense_conv2d.h."""

    WINDOWS_OF_IMAGE = 0
    IMAGE_OF_WINDOWS = 1
    TILES_OF_INPUT = 2
    TILES_OF_OUTPUT = 3
    OUTPUT_OF_TILES = 4
    INPUT_OF_TILES = 5
    TILES_OF_WEIGHT = 6
    WEIGHT_OF_TILES = 7


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    transposed: bool,
    y: Tensor,
) -> None:
    """Fills ``y``."""
    x, weight = channels_last(x), channels_last(weight)
    bias = None if bias is None else bias.contiguous()
    with filled(y, image=True) as to_y:
        assert to_y is not None
        kernel = _whole(weight, stride, padding, transposed)
        if kernel is not None:
            fine, coarse = (None, x) if transposed else (x, None)
            wanted = Wanted.FINE if transposed else Wanted.COARSE
            shapes = (y.shape, x.shape) if transposed else (x.shape, y.shape)
            images = coarse, fine, weight, bias, to_y
            _run_whole(kernel, wanted, images, shapes, weight, stride, padding)
        elif _by_winograd(x, weight, stride, padding, transposed):
            tiles = _tiles(Step.TILES_OF_INPUT, x)
            products = tiles.new_empty(*tiles.shape[:2], y.shape[1])
            _multiply(tiles, _kernels(weight), products, b_transposed=True)
            _run(Step.OUTPUT_OF_TILES, products, to_y, y.shape, bias)
        elif _is_product(weight, stride, padding):
            matrix = weight.flatten(1)
            _multiply(_pixels(x), matrix, _pixels(to_y), bias, b_transposed=not transposed)
        elif transposed:
            pixels, matrix = _pixels(x), _matrix(weight)
            windows = x.new_empty(pixels.shape[0], matrix.shape[1])
            _multiply(pixels, matrix, windows)
            frame = _frame(x, weight, stride, padding)
            _run(Step.IMAGE_OF_WINDOWS, windows, to_y, y.shape, bias, frame)
        else:
            windows = _windows(x, y, weight, stride, padding)
            _multiply(windows, _matrix(weight), _pixels(to_y), bias, b_transposed=True)


def backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int,
    padding: int,
    transposed: bool,
    grads: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Fills the gradients of ``x``, ``weight`` and, unless it is empty, the bias."""
    x, weight, grad_y = channels_last(x), channels_last(weight), channels_last(grad_y)
    grad_x, grad_weight, grad_bias = grads
    wanted_bias = grad_bias if grad_bias.numel() else None
    with filled(grad_x, image=True) as to_x, filled(grad_weight, image=True) as to_weight:
        assert to_x is not None
        assert to_weight is not None
        if _is_product(weight, stride, padding) and not transposed:
            pixels = _pixels(grad_y), _pixels(x), weight.flatten(1)
            linear_gradients(*pixels, (_pixels(to_x), to_weight.flatten(1), wanted_bias))
            return
        if wanted_bias is not None:
            linear_gradients(_pixels(grad_y), None, None, (None, None, wanted_bias))
        fine, coarse = (grad_y, x) if transposed else (x, grad_y)
        kernel = _whole(weight, stride, padding, transposed)
        if kernel is not None:
            wanted = Wanted.COARSE if transposed else Wanted.FINE
            for what, to in ((wanted, to_x), (Wanted.WEIGHT, to_weight)):
                images = coarse, fine, weight, None, to
                _run_whole(
                    kernel, what, images, (fine.shape, coarse.shape), weight, stride, padding
                )
            return
        if _by_winograd(x, weight, stride, padding, transposed):
            _backward_by_winograd(grad_y, x, weight, to_x, to_weight)
            return
        if _is_product(weight, stride, padding):
            _multiply(_pixels(x), _pixels(grad_y), to_weight.flatten(1), a_transposed=True)
            _multiply(_pixels(grad_y), weight.flatten(1), _pixels(to_x), b_transposed=True)
            return
        windows = _windows(fine, coarse, weight, stride, padding)
        _multiply(_pixels(coarse), windows, _matrix(to_weight), a_transposed=True)
        if transposed:
            _multiply(windows, _matrix(weight), _pixels(to_x), b_transposed=True)
        else:
            _multiply(_pixels(coarse), _matrix(weight), windows)
            frame = _frame(coarse, weight, stride, padding)
            _run(Step.IMAGE_OF_WINDOWS, windows, to_x, x.shape, None, frame)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor) -> None:
    """Fills ``y`` (…, C') with ``x`` (…, C) times ``weight`` (C', C), plus ``bias``; all dense."""
    outputs, inputs = weight.shape
    _native.core().dense_conv2d_products_cpu(
        x.data_ptr(),
        weight.data_ptr(),
        _native.address(bias),
        y.data_ptr(),
        (1, x.numel() // inputs, outputs, inputs),
        False,
        True,
        _native.DTYPE_CODES[x.dtype],
        torch.get_num_threads(),
    )


def linear_gradients(
    grad_y: Tensor,
    x: Tensor | None,
    weight: Tensor | None,
    grads: tuple[Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """Fills the gradients of :func:`linear`'s ``x``, ``weight`` and ``bias``, where not None."""
    outputs = grad_y.shape[-1]
    _native.core().dense_conv2d_gradients_cpu(
        grad_y.data_ptr(),
        _native.address(x),
        _native.address(weight),
        *map(_native.address, grads),
        (grad_y.numel() // outputs, 0 if weight is None else weight.shape[1], outputs),
        _native.DTYPE_CODES[grad_y.dtype],
        torch.get_num_threads(),
    )


def _backward_by_winograd(
    grad_y: Tensor, x: Tensor, weight: Tensor, grad_x: Tensor, grad_weight: Tensor
) -> None:
    given = _tiles(Step.TILES_OF_OUTPUT, grad_y)
    kernels = _kernels(weight)
    tiles = given.new_empty(16, given.shape[1], x.shape[1])
    _multiply(given, kernels, tiles)
    _run(Step.INPUT_OF_TILES, tiles, grad_x, x.shape)
    _run(Step.TILES_OF_INPUT, x, tiles, x.shape)
    _multiply(given, tiles, kernels, a_transposed=True)
    _run(Step.WEIGHT_OF_TILES, kernels, grad_weight, weight.shape)


def _whole(
    weight: Tensor, stride: int, padding: int, transposed: bool
) -> Callable[..., None] | None:
    """The kernel that computes all of such a convolution, if there is one."""
    kernel: Callable[..., None] | None = None
    if not transposed and (weight.shape[-1], stride, padding) == (3, 1, 1):
        if is_fused(weight):
            kernel = _native.core().dense_conv2d_fused_winograd_cpu
    elif is_implicit(weight) and not _is_product(weight, stride, padding):
        kernel = _native.core().dense_conv2d_implicit_cpu
    return kernel


def is_fused(weight: Tensor) -> bool:
    """Whether Winograd's points of such a weight are never all in memory."""
    # AMX has products of large matrices; it was not measured with small ones.
    fits = max(weight.shape[:2]) <= FUSED_CHANNELS and weight.dtype == torch.float32
    return fits and not _native.matrix_unit()


def _by_winograd(x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool) -> bool:
    if transposed or (weight.shape[-1], stride, padding) != (3, 1, 1):
        return False
    # Where AMX multiplies, transforms of the weight cost more than they save for few pixels.
    by_amx = _native.matrix_unit() and x.dtype == torch.float32
    return not by_amx or x.shape[0] * x.shape[2] * x.shape[3] > WINOGRAD_PIXELS


def is_implicit(weight: Tensor) -> bool:
    """Whether a product reads the windows of this weight's image from the image."""
    # Fewer registers lose by it; AMX reads its operands in other squares.
    built = _native.wide_vectors() and not _native.matrix_unit()
    return built and all(channels % IMPLICIT_CHANNELS == 0 for channels in weight.shape[:2])


def _is_product(weight: Tensor, stride: int, padding: int) -> bool:
    """Whether every pixel sees itself only: a Linear layer."""
    return (weight.shape[-1], stride, padding) == (1, 1, 0)


def _pixels(image: Tensor) -> Tensor:
    """A channels-last image (N, C, H, W) as a matrix (N·H·W, C), without a copy."""
    return image.permute(0, 2, 3, 1).view(-1, image.shape[1])


def _matrix(weight: Tensor) -> Tensor:
    """A channels-last weight (C, C', k, k) as (C, k·k·C'), without a copy."""
    return weight.permute(0, 2, 3, 1).view(weight.shape[0], -1)


def _windows(fine: Tensor, coarse: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """What every pixel of the coarse image sees of the fine one, (M, k·k·C)."""
    frame = _frame(coarse, weight, stride, padding)
    rows = coarse.shape[0] * coarse.shape[2] * coarse.shape[3]
    windows = fine.new_empty(rows, weight.shape[-1] ** 2 * fine.shape[1])
    _run(Step.WINDOWS_OF_IMAGE, fine, windows, fine.shape, None, frame)
    return windows


def _frame(
    coarse: Tensor, weight: Tensor, stride: int, padding: int
) -> tuple[int, int, int, int, int]:
    return coarse.shape[2], coarse.shape[3], weight.shape[-1], stride, padding


def _run_whole(
    kernel: Callable[..., None],
    wanted: Wanted,
    images: tuple[Tensor | None, Tensor | None, Tensor, Tensor | None, Tensor],
    shapes: tuple[torch.Size, torch.Size],
    weight: Tensor,
    stride: int,
    padding: int,
) -> None:
    """Fills the last of (coarse, fine, weight, bias, out); shapes: of the fine and coarse image."""
    (n, c, h, w), coarse = shapes
    kernel(
        int(wanted),
        tuple(map(_native.address, images)),
        (n, h, w, c, *coarse[2:], weight.shape[-1], stride, padding, coarse[1]),
        _native.DTYPE_CODES[weight.dtype],
        torch.get_num_threads(),
    )


def _tiles(step: Step, image: Tensor) -> Tensor:
    """Winograd's tiles of an image, (16, T, C)."""
    n, c, h, w = image.shape
    tiles = image.new_empty(16, n * ((h + 1) // 2) * ((w + 1) // 2), c)
    _run(step, image, tiles, image.shape)
    return tiles


def _kernels(weight: Tensor) -> Tensor:
    """Winograd's 16 matrices (C', C) of a weight (C', C, 3, 3)."""
    kernels = weight.new_empty(16, weight.shape[0], weight.shape[1])
    _run(Step.TILES_OF_WEIGHT, weight, kernels, weight.shape)
    return kernels


def _multiply(
    a: Tensor,
    b: Tensor,
    c: Tensor,
    bias: Tensor | None = None,
    *,
    a_transposed: bool = False,
    b_transposed: bool = False,
) -> None:
    """c = a b + bias for dense matrices, or stacks of them; ``transposed``: as they are stored."""
    m, n = c.shape[-2:]
    _native.core().dense_conv2d_products_cpu(
        _native.address(a),
        _native.address(b),
        _native.address(bias),
        _native.address(c),
        (c.shape[0] if c.dim() == 3 else 1, m, n, a.shape[-2 if a_transposed else -1]),
        a_transposed,
        b_transposed,
        _native.DTYPE_CODES[c.dtype],
        torch.get_num_threads(),
    )


def _run(
    step: Step,
    source: Tensor,
    target: Tensor,
    nchw: torch.Size,
    bias: Tensor | None = None,
    frame: tuple[int, int, int, int, int] = (0, 0, 3, 1, 1),
) -> None:
    n, c, h, w = nchw
    _native.core().dense_conv2d_step_cpu(
        int(step),
        _native.address(source),
        _native.address(bias),
        _native.address(target),
        (n, h, w, c, *frame),
        _native.DTYPE_CODES[source.dtype],
        torch.get_num_threads(),
    )
