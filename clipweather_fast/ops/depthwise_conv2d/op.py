"""depthwise_conv2d: contract, checks, choice of backend, registration.

The kernels are those of sar_conv2d with no mixed kernels, so this folder has none of its own.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipweather_fast.ops import _checks, _native, _registration
from clipweather_fast.ops._backends import Operator, explainable, select
from clipweather_fast.ops._layout import empty_grad, empty_like_image
from clipweather_fast.ops._triton import why_not_triton
from clipweather_fast.ops.depthwise_conv2d.reference import depthwise_conv2d_reference

__all__ = ["depthwise_conv2d"]

KERNEL_SIZES = (3, 5, 7)

OPERATOR = Operator(
    "depthwise_conv2d",
    {
        "cuda": lambda x, *rest: _native.why_not_cuda(x),
        "triton": lambda x, *rest: why_not_triton(x),
        "cpu": lambda x, *rest: _native.why_not_cpu(x),
        "reference": lambda *arguments: None,
    },
)


def _checked(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: str = "none"
) -> tuple[Any, ...]:
    """The documented errors; the arguments in the registered op's order."""
    op = "depthwise_conv2d"
    _checks.image(op, "x", x)
    _checks.tensor(op, "weight", weight)
    _checks.same_device(op, x, weight=weight, bias=bias)
    c = x.shape[1]
    k = weight.shape[-1] if weight.dim() == 4 else 0
    if weight.dim() != 4 or tuple(weight.shape) != (c, 1, k, k):
        raise ValueError(
            f"{op}: weight must be (C, 1, k, k) with C = {c}, got {tuple(weight.shape)}"
        )
    if k not in KERNEL_SIZES:
        raise ValueError(f"{op}: the kernel size k must be 3, 5 or 7, got {k}")
    _checks.optional_shape(op, "bias", bias, "(C,)", (c,))
    _checks.choice(op, "activation", activation, tuple(_native.ACTIVATIONS))
    (x,) = _checks.autocast(x)
    _checks.parameter_dtype(op, x, weight=weight, bias=bias)
    return x, weight, bias, activation


@explainable(OPERATOR, _checked)
def depthwise_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str = "none",
    backend: str | None = None,
) -> Tensor:
    r"""Filters every channel with its own kernel, adds its bias and applies GELU, in one pass.

    .. math:: y = \mathrm{activation}(\mathrm{DWConv}(x, \mathrm{weight}) + \mathrm{bias})

    Zero padding k // 2, stride 1. The stretch between the two Linear layers of the feed-forward
    networks of PVTv2, SegFormer and TransWeather.

    Args:
        x: features (N, C, H, W); channels-last is the fast layout, every other is accepted.
        weight: (C, 1, k, k), k ∈ {3, 5, 7} (3 is fast), float32 or the dtype of ``x``.
        bias: (C,).
        activation: ``"none"`` or ``"gelu"`` (exact, by erf).
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``; None: automatic.

    Returns:
        y (N, C, H, W) in the dtype and memory format of ``x``.

    Gradients:
        To ``x``, ``weight`` and ``bias``; only the arguments are saved.

    Numerics:
        As :func:`clipweather_fast.ops.sar_conv2d`.

    Reference:
        "PVT v2: Improved Baselines with Pyramid Vision Transformer" (arXiv 2106.13797).

    Raises:
        ValueError: shapes, sizes or words outside the above.
        TypeError: an argument that is not a tensor, or of a dtype that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    arguments = _checked(x, weight, bias, activation=activation)
    name = select(OPERATOR, backend, *arguments)
    if name == "reference":
        return depthwise_conv2d_reference(*arguments)
    y: Tensor = _registration.call("depthwise_conv2d", *arguments, name)
    return y


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, activation: str, backend: str
) -> Tensor:
    y = empty_like_image(x)
    if x.numel():
        _registration.implementation("sar_conv2d", backend).forward(
            x, None, None, None, weight, bias, "none", activation, y, None
        )
    return y


def _fake(x: Tensor, *rest: Any) -> Tensor:
    return empty_like_image(x)


def _backward(
    grad_y: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad_y, x, weight, bias)
    if x.numel() == 0:
        for grad in grads:
            grad.zero_()
        return grads
    _registration.implementation("sar_conv2d", backend).backward(
        grad_y,
        None,
        x,
        None,
        None,
        None,
        weight,
        bias,
        "none",
        activation,
        (grads[0], None, None, None, grads[1], grads[2]),
    )
    return grads


def _backward_fake(
    grad_y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return empty_like_image(x), empty_grad(x, weight), empty_grad(x, bias)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.activation, ctx.backend = inputs[3:]


def _autograd(ctx: Any, grad_y: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors  # read once: under activation checkpointing a second time raises
    grads = _registration.call(
        "depthwise_conv2d_backward", grad_y, *saved, ctx.activation, ctx.backend
    )
    grad_bias = None if saved[2] is None else grads[2]
    return grads[0], grads[1], grad_bias, None, None


_registration.define(
    "depthwise_conv2d",
    "(Tensor x, Tensor weight, Tensor? bias, str activation, str backend) -> Tensor",
    _forward,
    _fake,
)
_registration.define(
    "depthwise_conv2d_backward",
    "(Tensor grad_y, Tensor x, Tensor weight, Tensor? bias, str activation, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_registration.register_autograd("depthwise_conv2d", _autograd, _setup)
