"""sar_logits: contract, checks, choice of backend, registration."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipweather_fast.ops import _checks, _native, _registration
from clipweather_fast.ops._backends import Operator, explainable, select
from clipweather_fast.ops._layout import empty_grad, empty_like_image, is_channels_last
from clipweather_fast.ops._triton import why_not_triton
from clipweather_fast.ops.sar_logits.reference import sar_logits_reference

__all__ = ["sar_logits"]

MAX_KERNELS = 8

OPERATOR = Operator(
    "sar_logits",
    {
        "cuda": lambda x, *rest: _native.why_not_cuda(x),
        "triton": lambda x, *rest: why_not_triton(x),
        "cpu": lambda x, *rest: _native.why_not_cpu(x),
        "reference": lambda *arguments: None,
    },
)


def check_predictor(
    op: str,
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
) -> None:
    """The documented errors of the predictor's four parameters."""
    c = x.shape[1]
    parameters = {
        "depthwise_weight": depthwise_weight,
        "depthwise_bias": depthwise_bias,
        "pointwise_weight": pointwise_weight,
        "pointwise_bias": pointwise_bias,
    }
    for name, parameter in parameters.items():
        _checks.tensor(op, name, parameter)
    _checks.same_device(op, x, **parameters)
    _checks.shape(op, "depthwise_weight", depthwise_weight, "(C, 1, 3, 3)", (c, 1, 3, 3))
    _checks.shape(op, "depthwise_bias", depthwise_bias, "(C,)", (c,))
    if pointwise_weight.dim() != 4 or tuple(pointwise_weight.shape[1:]) != (c, 1, 1):
        raise ValueError(
            f"{op}: pointwise_weight must be (K, C, 1, 1) with C = {c}, "
            f"got {tuple(pointwise_weight.shape)}"
        )
    kernels = pointwise_weight.shape[0]
    if not 1 <= kernels <= MAX_KERNELS:
        raise ValueError(
            f"{op}: pointwise_weight must give K = 1 to {MAX_KERNELS} maps, got K = {kernels}"
        )
    _checks.shape(op, "pointwise_bias", pointwise_bias, "(K,)", (kernels,))


def _checked(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
) -> tuple[Any, ...]:
    """The documented errors; the arguments in the registered op's order."""
    op = "sar_logits"
    _checks.image(op, "x", x)
    parameters = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
    check_predictor(op, x, *parameters)
    (x,) = _checks.autocast(x)
    _checks.parameter_dtype(
        op,
        x,
        depthwise_weight=depthwise_weight,
        depthwise_bias=depthwise_bias,
        pointwise_weight=pointwise_weight,
        pointwise_bias=pointwise_bias,
    )
    return x, *parameters


@explainable(OPERATOR, _checked)
def sar_logits(
    x: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    *,
    backend: str | None = None,
) -> Tensor:
    r"""Predicts K maps from an image, to be gated into the weights of :func:`sar_conv2d`.

    .. math:: \mathrm{logits} = \mathrm{Conv}_{1×1}(\mathrm{GELU}(\mathrm{DWConv}_{3×3}(x)))

    The C-wide intermediate is never materialised.

    Args:
        x: features (N, C, H, W); channels-last is the fast layout, every other is accepted.
        depthwise_weight: (C, 1, 3, 3), float32 or the dtype of ``x``, as the other parameters.
        depthwise_bias: (C,).
        pointwise_weight: (K, C, 1, 1), 1 ≤ K ≤ 8.
        pointwise_bias: (K,).
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``; None: automatic.

    Returns:
        logits (N, K, H, W) in the dtype and memory format of ``x``.

    Gradients:
        To every argument; only the arguments are saved.

    Numerics:
        As :func:`clipweather_fast.ops.sar_conv2d`. GELU is exact (by erf).

    Reference:
        Eq. 4 of "Exploring the Application of Large-scale Pre-trained Models on Adverse Weather
        Removal" (arXiv 2306.09008), before its softmax.

    Raises:
        ValueError: shapes or sizes outside the above.
        TypeError: an argument that is not a tensor, or of a dtype that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    arguments = _checked(x, depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
    name = select(OPERATOR, backend, *arguments)
    if name == "reference":
        return sar_logits_reference(*arguments)
    logits: Tensor = _registration.call("sar_logits", *arguments, name)
    return logits


def empty_logits(x: Tensor, kernels: int) -> Tensor:
    """Room for logits (N, K, H, W) in the memory format of ``x``."""
    n, _, h, w = x.shape
    if is_channels_last(x):
        return x.new_empty(n, h, w, kernels).permute(0, 3, 1, 2)
    return x.new_empty(n, kernels, h, w)


def _forward(x: Tensor, dw: Tensor, db: Tensor, pw: Tensor, pb: Tensor, backend: str) -> Tensor:
    logits = empty_logits(x, pw.shape[0])
    if x.shape[1] == 0:
        return logits.copy_(pb.view(1, -1, 1, 1).expand_as(logits))
    if logits.numel():
        _registration.implementation("sar_logits", backend).forward(x, dw, db, pw, pb, logits)
    return logits


def _fake(x: Tensor, dw: Tensor, db: Tensor, pw: Tensor, *rest: Any) -> Tensor:
    return empty_logits(x, pw.shape[0])


def _backward(
    grad_logits: Tensor,
    x: Tensor,
    dw: Tensor,
    db: Tensor,
    pw: Tensor,
    pb: Tensor,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad_logits, x, dw, db, pw, pb)
    if x.numel() == 0:
        for grad in grads:
            grad.zero_()
        if x.shape[1] == 0:
            grads[4].copy_(grad_logits.sum((0, 2, 3)))
        return grads
    _registration.implementation("sar_logits", backend).backward(
        grad_logits, x, dw, db, pw, pb, grads
    )
    return grads


def _backward_fake(
    grad_logits: Tensor, x: Tensor, dw: Tensor, db: Tensor, pw: Tensor, pb: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    first, second, third, fourth = (empty_grad(x, p) for p in (dw, db, pw, pb))
    return empty_like_image(x), first, second, third, fourth


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.backend = inputs[5]


def _autograd(ctx: Any, grad_logits: Tensor) -> tuple[Any, ...]:
    grads = _registration.call("sar_logits_backward", grad_logits, *ctx.saved_tensors, ctx.backend)
    return *grads, None


_registration.define(
    "sar_logits",
    "(Tensor x, Tensor depthwise_weight, Tensor depthwise_bias, Tensor pointwise_weight, "
    "Tensor pointwise_bias, str backend) -> Tensor",
    _forward,
    _fake,
)
_registration.define(
    "sar_logits_backward",
    "(Tensor grad_logits, Tensor x, Tensor depthwise_weight, Tensor depthwise_bias, "
    "Tensor pointwise_weight, Tensor pointwise_bias, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_registration.register_autograd("sar_logits", _autograd, _setup)
