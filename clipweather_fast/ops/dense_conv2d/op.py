"""dense_conv2d: contract, checks, choice of backend, registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipweather_fast.ops import _checks, _native, _registration
from clipweather_fast.ops._backends import Operator, explainable, select
from clipweather_fast.ops._layout import empty_grad, empty_like_image, is_channels_last
from clipweather_fast.ops.dense_conv2d import native_cpu
from clipweather_fast.ops.dense_conv2d.reference import dense_conv2d_reference

__all__ = ["dense_conv2d"]

LARGEST_KERNEL = 16
#: Up to so many pixels of the coarse image PyTorch's convolution spends most of its time on
#: rearranging the weight; one matrix product reads it once.
FEW_PIXELS = 128
#: Up to so many, float32 products by AVX-512 are faster where the window's stride is 2 and more and
#: windows are never in memory. With 1024 PyTorch is as fast, and faster on two threads.
IMPLICIT_PIXELS = 512
#: Up to so many rows AVX-512 multiplies float32 faster than PyTorch, whose products fetch a weight
#: and multiply with it in turn, see csrc/common/cpu_packed_products.h.
FEW_ROWS = 256
#: Below so many input or output channels Winograd's transforms cost what its products save.
ENOUGH_CHANNELS = 64
#: The same where Winograd's points are never all in memory: with 32 a gain of a fifth, with 24 a
#: loss of a tenth.
ENOUGH_FUSED_CHANNELS = 32
#: Fewer rows or channels are not multiplied faster in float32, see csrc/common/cpu_matrix_parts.h,
#: and by AMX fewer products are done in the time of the call.
FEWEST_ROWS, FEWEST_CHANNELS, ENOUGH_PRODUCTS = 16, 32, 1 << 22
#: Up to so many pixels of the coarse image AMX multiplies windows faster than PyTorch convolves.
MOST_PIXELS = 1 << 12
#: Winograd's tiles are four times the image; in memory that the cache does not hold they cost what
#: they save.
LARGEST_TILES = 8 << 20


def product_pays(rows: int, weight: Tensor) -> bool:
    """Whether our float32 product of so many rows is faster than PyTorch's, its call included."""
    if weight.dtype != torch.float32 or rows < FEWEST_ROWS:
        return False
    if min(weight.shape[:2]) < FEWEST_CHANNELS:
        return False
    if _native.matrix_unit():
        return rows * weight.numel() >= ENOUGH_PRODUCTS
    return rows <= FEW_ROWS and _native.wide_vectors()


def _why_not_cpu(x: Tensor, *rest: Any) -> str | None:
    if x.device.type == "cpu" and x.dtype not in (torch.float32, torch.float64):
        return f"the CPU kernels of dense_conv2d take float32 or float64, got {x.dtype}"
    return _native.why_not_cpu(x)


def _prefers(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, transposed: bool
) -> tuple[str, ...]:
    """The CPU kernels first where they were measured to win, else PyTorch's convolution."""
    n, _, h, w = x.shape
    k, enough = weight.shape[-1], min(weight.shape[:2]) >= ENOUGH_CHANNELS
    same = not transposed and (k, stride, padding) == (3, 1, 1)
    if same and native_cpu.is_fused(weight) and min(weight.shape[:2]) >= ENOUGH_FUSED_CHANNELS:
        return ("cpu",)
    if same and enough:
        tiles = 4 * n * h * w * max(weight.shape[:2]) * x.element_size()
        return ("cpu",) if tiles <= LARGEST_TILES else ("reference",)
    rows = coarse_pixels(x, k, stride, padding, transposed)
    by_amx = _native.matrix_unit() and rows <= MOST_PIXELS and product_pays(rows, weight)
    # Windows take memory, which pictures that are only restored may not have.
    by_amx = by_amx and torch.is_grad_enabled()
    few = enough and rows <= FEW_PIXELS
    # Measured where networks learn; pictures that are only restored have the frozen layers.
    implicit = stride > 1 and rows <= IMPLICIT_PIXELS and torch.is_grad_enabled()
    implicit = implicit and _implicit_pays(weight)
    return ("cpu",) if by_amx or (k > 1 and (few or implicit)) else ("reference",)


def _implicit_pays(weight: Tensor) -> bool:
    enough = weight.dtype == torch.float32 and min(weight.shape[:2]) >= ENOUGH_CHANNELS
    return enough and native_cpu.is_implicit(weight)


OPERATOR = Operator(
    "dense_conv2d",
    {
        "cuda": lambda *arguments: "PyTorch's convolution serves GPUs",
        "triton": lambda *arguments: "PyTorch's convolution serves GPUs",
        "cpu": _why_not_cpu,
        "reference": lambda *arguments: None,
    },
    prefers=_prefers,
)


def coarse_pixels(x: Tensor, k: int, stride: int, padding: int, transposed: bool) -> int:
    """Pixels of the result, or, where the convolution is transposed, of ``x``."""
    n, _, h, w = x.shape
    if transposed:
        return n * h * w
    return n * output_side(h, k, stride, padding, False) * output_side(w, k, stride, padding, False)


def weight_bound(x: Tensor, weight: Tensor, stride: int, padding: int, transposed: bool) -> bool:
    """Whether reading the weight takes most of the time, so that rounding it first takes longer."""
    k, enough = weight.shape[-1], min(weight.shape[:2]) >= ENOUGH_CHANNELS
    few = coarse_pixels(x, k, stride, padding, transposed) <= FEW_PIXELS
    return enough and few and k > 1 and weight.dtype == torch.float32


def output_side(side: int, k: int, stride: int, padding: int, transposed: bool) -> int:
    """Rows or columns of the result."""
    if transposed:
        return (side - 1) * stride + k - 2 * padding
    return (side + 2 * padding - k) // stride + 1


def _checked(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
) -> tuple[Any, ...]:
    """The documented errors; the arguments in the registered op's order."""
    op = "dense_conv2d"
    _checks.image(op, "x", x)
    _checks.tensor(op, "weight", weight)
    _checks.same_device(op, x, weight=weight, bias=bias)
    c = x.shape[1]
    letters = "(C, C', k, k)" if transposed else "(C', C, k, k)"
    k = weight.shape[-1] if weight.dim() == 4 else 0
    if weight.dim() != 4 or weight.shape[2] != k or weight.shape[0 if transposed else 1] != c:
        raise ValueError(f"{op}: weight must be {letters} with C = {c}, got {tuple(weight.shape)}")
    if not 1 <= k <= LARGEST_KERNEL:
        raise ValueError(f"{op}: the kernel size k must be 1 to {LARGEST_KERNEL}, got {k}")
    _checks.optional_shape(op, "bias", bias, "(C',)", (weight.shape[1 if transposed else 0],))
    if not 1 <= stride <= k:
        raise ValueError(f"{op}: stride must be 1 to k = {k}, got {stride}")
    if not 0 <= padding < k:
        raise ValueError(f"{op}: padding must be 0 to k - 1 = {k - 1}, got {padding}")
    sides = [output_side(side, k, stride, padding, transposed) for side in x.shape[2:]]
    if min(*sides, *x.shape[2:]) < 1:
        raise ValueError(
            f"{op}: x must have sides whose result has at least one pixel, got "
            f"{x.shape[2]} and {x.shape[3]} for k = {k} and padding = {padding}"
        )
    (x,) = _checks.autocast(x)
    _checks.parameter_dtype(op, x, weight=weight, bias=bias)
    return x, weight, bias, stride, padding, transposed


@explainable(OPERATOR, _checked)
def dense_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: int = 1,
    padding: int = 0,
    transposed: bool = False,
    backend: str | None = None,
) -> Tensor:
    r"""Mixes the channels of every window of an image: the convolution of decoders and embeddings.

    .. math:: y_{c'}(i, j) = \mathrm{bias}_{c'} + \sum_{c, a, b} \mathrm{weight}_{c' c a b} \;
        x_c(s i + a - p, s j + b - p)

    or, ``transposed``, the sum of what every pixel of ``x`` spreads to its window of ``y``. As
    PyTorch's ``conv2d`` and ``conv_transpose2d``, for square kernels without groups and dilation.
    The automatic choice takes the CPU kernels where they were measured to be faster: 3×3 kernels
    of stride 1, in float32 from 32 channels on (by Winograd's F(4×2, 3×3)), in float64 and with AMX
    from 64 on (by F(2×2, 3×3)), and images of at most 128 pixels at the coarser side (as one
    product of windows and weight). While gradients are enabled,
    in float32: with AVX-512 up to 512 pixels, for strides from 2 on and 64 channels and more, in
    multiples of 32; with AMX up to 4096, and 1×1 kernels too, and 3×3 kernels of stride 1 as such
    a product up to 128 pixels.

    Args:
        x: features (N, C, H, W), H, W ≥ 1; channels-last is the fast layout.
        weight: (C', C, k, k), k from 1 to 16, or (C, C', k, k) where ``transposed``; float32 or
            the dtype of ``x``; channels-last is the fast layout.
        bias: (C',).
        stride: s, 1 to k.
        padding: p, 0 to k - 1.
        transposed: whether the convolution is a transposed one.
        backend: ``"cpu"``, ``"reference"`` (``"cuda"`` and ``"triton"`` refuse); None: automatic.

    Returns:
        y (N, C', H', W') in the dtype of ``x``, channels-last if ``x`` or ``weight`` is.
        H' = ⌊(H + 2p - k) / s⌋ + 1, or (H - 1) s + k - 2p where ``transposed``.

    Gradients:
        To ``x``, ``weight`` and ``bias``; only the arguments are saved.

    Numerics:
        Products are summed in the dtype of ``x``; by AMX each as six of bfloat16, as exactly, but
        an infinite operand gives NaN (csrc/common/cpu_matrix_parts.h). What lies beyond the borders
        may be multiplied as zeros, so that an infinite weight gives NaN there. Winograd's sums have
        an error of at most about twice that of plain ones, and a number that is not finite reaches
        its neighbours within a tile of 4×2.

    Reference:
        "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308).

    Raises:
        ValueError: shapes or sizes outside the above.
        TypeError: an argument that is not a tensor, or of a dtype that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    arguments = _checked(x, weight, bias, stride=stride, padding=padding, transposed=transposed)
    name = select(OPERATOR, backend, *arguments)
    if name == "reference":
        return dense_conv2d_reference(*arguments)
    y: Tensor = _registration.call("dense_conv2d", *arguments, name)
    return y


def _forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    transposed: bool,
    backend: str,
) -> Tensor:
    y = _fake(x, weight, bias, stride, padding, transposed)
    if y.numel():
        _registration.implementation("dense_conv2d", backend).forward(
            x, weight, bias, stride, padding, transposed, y
        )
    return y


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    transposed: bool,
    *rest: Any,
) -> Tensor:
    k = weight.shape[-1]
    sides = (output_side(side, k, stride, padding, transposed) for side in x.shape[2:])
    shape = (x.shape[0], weight.shape[1 if transposed else 0], *sides)
    last = is_channels_last(x) or is_channels_last(weight)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int,
    padding: int,
    transposed: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad_y, x, weight, bias)
    if grad_y.numel() == 0 or x.numel() == 0:
        for grad in grads:
            grad.zero_()
        return grads
    _registration.implementation("dense_conv2d", backend).backward(
        grad_y, x, weight, stride, padding, transposed, grads
    )
    return grads


def _backward_fake(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    # The weight's as the weight lies: then it becomes the parameter's gradient without a copy.
    return empty_like_image(x), empty_like_image(weight), empty_grad(x, bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.rest = inputs[3:]


def _autograd(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: under activation checkpointing a second time raises
    grads = _registration.call("dense_conv2d_backward", grad_y, *saved, *ctx.rest)
    return grads[0], grads[1], None if saved[2] is None else grads[2], None, None, None, None


_registration.define(
    "dense_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, int stride, int padding, bool transposed,"
    " str backend) -> Tensor",
    _forward,
    _fake,
)
_registration.define(
    "dense_conv2d_backward",
    "(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, int stride, int padding,"
    " bool transposed, str backend) -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_registration.register_autograd("dense_conv2d", _autograd, _setup)
