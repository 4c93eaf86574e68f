"""sar_conv2d: the contract, the checks, the choice of backend and the registration."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipweather_fast.ops import _checks, _native, _registration
from clipweather_fast.ops._backends import Operator, explainable, select
from clipweather_fast.ops._layout import empty_grad, empty_like_image
from clipweather_fast.ops._triton import why_not_triton
from clipweather_fast.ops.sar_conv2d.reference import sar_conv2d_reference

__all__ = ["sar_conv2d"]

KERNEL_SIZES = (3, 5, 7)
MAX_KERNELS = 8


def _why_not_cuda(x: Tensor, *rest: Any) -> str | None:
    return _native.why_not_cuda(x)


def _why_not_triton(x: Tensor, *rest: Any) -> str | None:
    return why_not_triton(x)


def _why_not_cpu(x: Tensor, *rest: Any) -> str | None:
    return _native.why_not_cpu(x)


def _why_not_reference(*arguments: Any) -> str | None:
    return None


OPERATOR = Operator(
    "sar_conv2d",
    {
        "cuda": _why_not_cuda,
        "triton": _why_not_triton,
        "cpu": _why_not_cpu,
        "reference": _why_not_reference,
    },
)


def check_kernels(
    op: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
) -> None:
    """The documented errors of the mixed and the static kernels."""
    _checks.tensor(op, "weight", weight)
    _checks.same_device(op, x, weight=weight, bias=bias)
    _checks.same_device(op, x, static_weight=static_weight, static_bias=static_bias)
    c = x.shape[1]
    if weight.dim() != 4 or weight.shape[1] != c or weight.shape[2] != weight.shape[3]:
        raise ValueError(
            f"{op}: weight must be (K, C, k, k) with C = {c}, got {tuple(weight.shape)}"
        )
    kernels, k = weight.shape[0], weight.shape[3]
    if not 1 <= kernels <= MAX_KERNELS:
        raise ValueError(
            f"{op}: weight must hold K = 1 to {MAX_KERNELS} kernels, got K = {kernels}"
        )
    if k not in KERNEL_SIZES:
        raise ValueError(f"{op}: the kernel size k must be 3, 5 or 7, got {k}")
    _checks.optional_shape(op, "bias", bias, "(K, C)", (kernels, c))
    _checks.optional_shape(op, "static_weight", static_weight, "(C, 1, k, k)", (c, 1, k, k))
    _checks.optional_shape(op, "static_bias", static_bias, "(C,)", (c,))
    if static_bias is not None and static_weight is None:
        raise ValueError(f"{op}: static_bias needs static_weight; pass both or neither")


def _checked(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    static_weight: Tensor | None = None,
    static_bias: Tensor | None = None,
    gate: str = "softmax",
    activation: str = "none",
    return_residual: bool = False,
) -> tuple[Any, ...]:
    """The documented errors; the arguments in the registered op's order."""
    op = "sar_conv2d"
    _checks.image(op, "x", x)
    _checks.tensor(op, "logits", logits)
    _checks.same_device(op, x, logits=logits)
    check_kernels(op, x, weight, bias, static_weight, static_bias)
    n, _, h, w = x.shape
    kernels = weight.shape[0]
    _checks.shape(op, "logits", logits, "(N, K, H, W)", (n, kernels, h, w))
    _checks.choice(op, "gate", gate, tuple(_native.GATES))
    _checks.choice(op, "activation", activation, tuple(_native.ACTIVATIONS))
    x, logits = _checks.autocast(x, logits)
    _checks.same_dtype(op, x, logits=logits)
    _checks.parameter_dtype(
        op, x, weight=weight, bias=bias, static_weight=static_weight, static_bias=static_bias
    )
    return x, logits, weight, bias, static_weight, static_bias, gate, activation, return_residual


@explainable(OPERATOR, _checked)
def sar_conv2d(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    static_weight: Tensor | None = None,
    static_bias: Tensor | None = None,
    gate: str = "softmax",
    activation: str = "none",
    return_residual: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Filters an image with K depthwise kernels mixed anew at every pixel, in one pass.

    .. math::
        V_n &= \mathrm{DWConv}(x, \mathrm{weight}[n]) + \mathrm{bias}[n] \\
        R &= \sum_n \mathrm{gate}(\mathrm{logits})_n \, V_n \\
        y &= \mathrm{activation}(\mathrm{DWConv}(x, \mathrm{static\_weight})
             + \mathrm{static\_bias} + R)

    The per-pixel kernel is never materialised. Zero padding k // 2, stride 1.

    Args:
        x: features (N, C, H, W); channels-last is the fast layout, every other is accepted.
        logits: K maps (N, K, H, W), shared by all channels, in the dtype of ``x``. Where they are
            not finite, that output pixel is NaN and no other is touched.
        weight: K depthwise kernels (K, C, k, k), 1 ≤ K ≤ 8, k ∈ {3, 5, 7} (3 is fast).
        bias: (K, C), mixed by the same maps.
        static_weight: a kernel every pixel shares, (C, 1, k, k).
        static_bias: (C,).
        gate: ``"softmax"`` over K, ``"sigmoid"`` or ``"none"`` (the maps are the weights).
        activation: ``"none"`` or ``"gelu"`` (exact, by erf).
        return_residual: also return R, for distillation.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``; None: automatic.

    Returns:
        y (N, C, H, W) in the dtype and memory format of ``x``; with ``return_residual`` (y, R).

    Gradients:
        To every tensor argument, through both outputs. Only the arguments are saved; the
        pre-activation is recomputed.

    Numerics:
        Sums are formed in fp32 (fp64 for float64). Gradients of the shared kernels are fp32 partial
        sums added in a fixed order, so results repeat bit for bit. Parameters are float32 or the
        dtype of ``x``. Under autocast ``x`` and ``logits`` take the autocast dtype.

    Reference:
        Spatially-adaptive residual, eqs. 3-5 of "Exploring the Application of Large-scale
        Pre-trained Models on Adverse Weather Removal" (arXiv 2306.09008).

    Raises:
        ValueError: shapes, sizes or words outside the above.
        TypeError: an argument that is not a tensor, or of a dtype that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    arguments = _checked(
        x,
        logits,
        weight,
        bias,
        static_weight=static_weight,
        static_bias=static_bias,
        gate=gate,
        activation=activation,
        return_residual=return_residual,
    )
    name = select(OPERATOR, backend, *arguments)
    if name == "reference":
        y, residual = sar_conv2d_reference(*arguments[:-1])
    else:
        y, residual = _registration.call("sar_conv2d", *arguments, name)
    return (y, residual) if return_residual else y


def _forward(
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    activation: str,
    return_residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    y = empty_like_image(x)
    residual = empty_like_image(x) if return_residual else x.new_empty(0)
    if x.numel() == 0:
        return y, residual
    forward = _registration.implementation("sar_conv2d", backend).forward
    forward(x, logits, weight, bias, static_weight, static_bias, gate, activation, y, residual)
    return y, residual


def _fake(x: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return_residual = rest[7]
    return empty_like_image(x), empty_like_image(x) if return_residual else x.new_empty(0)


def _backward(
    grad_y: Tensor | None,
    grad_residual: Tensor | None,
    x: Tensor,
    logits: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    activation: str,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _empty_grads(x, logits, weight, bias, static_weight, static_bias)
    if x.numel() == 0:
        for grad in grads:
            grad.zero_()
        return grads
    _registration.implementation("sar_conv2d", backend).backward(
        grad_y,
        grad_residual,
        x,
        logits,
        weight,
        bias,
        static_weight,
        static_bias,
        gate,
        activation,
        grads,
    )
    return grads


def _empty_grads(
    x: Tensor, logits: Tensor, *parameters: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for the gradients; an absent parameter's is an empty tensor."""
    first, second, third, fourth = (empty_grad(x, p) for p in parameters)
    return empty_like_image(x), empty_like_image(logits), first, second, third, fourth


def _backward_fake(
    grad_y: Tensor | None, grad_residual: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    return _empty_grads(*arguments[:6])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.gate, ctx.activation, ctx.return_residual, ctx.backend = inputs[6:]
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad_y: Tensor | None, grad_residual: Tensor | None) -> tuple[Any, ...]:
    if not ctx.return_residual:
        grad_residual = None
    if grad_y is None and grad_residual is None:
        return (None,) * 10
    saved = ctx.saved_tensors  # read once: under activation checkpointing a second time raises
    grads = _registration.call(
        "sar_conv2d_backward", grad_y, grad_residual, *saved, ctx.gate, ctx.activation, ctx.backend
    )
    wanted = zip(grads, saved, strict=True)
    return (*(None if saved is None else grad for grad, saved in wanted), None, None, None, None)


_registration.define(
    "sar_conv2d",
    "(Tensor x, Tensor logits, Tensor weight, Tensor? bias, Tensor? static_weight, "
    "Tensor? static_bias, str gate, str activation, bool return_residual, str backend)"
    " -> (Tensor, Tensor)",
    _forward,
    _fake,
)
_registration.define(
    "sar_conv2d_backward",
    "(Tensor? grad_y, Tensor? grad_residual, Tensor x, Tensor logits, Tensor weight, Tensor? bias, "
    "Tensor? static_weight, Tensor? static_bias, str gate, str activation, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_registration.register_autograd("sar_conv2d", _autograd, _setup)
