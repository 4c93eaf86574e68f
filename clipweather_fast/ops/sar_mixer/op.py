"""sar_mixer: contract, checks, choice of backend, registration.

Only the CPU has a kernel that spans the whole stretch. On a GPU a block would need every channel of
its pixels before the first can be mixed, so there the call is sar_logits followed by sar_conv2d.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from clipweather_fast.ops import _checks, _native, _registration
from clipweather_fast.ops._backends import Operator, explainable, select
from clipweather_fast.ops._layout import empty_grad, empty_like_image
from clipweather_fast.ops._triton import why_not_triton
from clipweather_fast.ops.sar_conv2d.op import check_kernels, sar_conv2d
from clipweather_fast.ops.sar_logits.op import check_predictor, empty_logits, sar_logits
from clipweather_fast.ops.sar_mixer.reference import sar_mixer_reference

__all__ = ["sar_mixer"]

OPERATOR = Operator(
    "sar_mixer",
    {
        "cuda": lambda z, *rest: _native.why_not_cuda(z),
        "triton": lambda z, *rest: why_not_triton(z),
        "cpu": lambda z, *rest: _native.why_not_cpu(z),
        "reference": lambda *arguments: None,
    },
)


def _checked(
    z: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    static_weight: Tensor | None = None,
    static_bias: Tensor | None = None,
    *,
    gate: str = "softmax",
    return_residual: bool = False,
) -> tuple[Any, ...]:
    """The documented errors; the arguments in the registered op's order."""
    op = "sar_mixer"
    _checks.image(op, "z", z)
    predictor = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
    kernels = (weight, bias, static_weight, static_bias)
    check_predictor(op, z, *predictor)
    check_kernels(op, z, *kernels)
    if pointwise_weight.shape[0] != weight.shape[0]:
        raise ValueError(
            f"{op}: pointwise_weight must give one map per kernel, K = {weight.shape[0]}, "
            f"got K = {pointwise_weight.shape[0]}"
        )
    _checks.choice(op, "gate", gate, tuple(_native.GATES))
    (z,) = _checks.autocast(z)
    _checks.parameter_dtype(
        op,
        z,
        depthwise_weight=depthwise_weight,
        depthwise_bias=depthwise_bias,
        pointwise_weight=pointwise_weight,
        pointwise_bias=pointwise_bias,
        weight=weight,
        bias=bias,
        static_weight=static_weight,
        static_bias=static_bias,
    )
    return z, *predictor, *kernels, gate, return_residual


@explainable(OPERATOR, _checked)
def sar_mixer(
    z: Tensor,
    depthwise_weight: Tensor,
    depthwise_bias: Tensor,
    pointwise_weight: Tensor,
    pointwise_bias: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    static_weight: Tensor | None = None,
    static_bias: Tensor | None = None,
    *,
    gate: str = "softmax",
    return_residual: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    r"""Everything between the two Linear layers of SARFFN: reads the hidden image once.

    .. math::
        R &= \mathrm{sar\_conv2d}(z, \mathrm{sar\_logits}(z)) \\
        y &= \mathrm{GELU}(\mathrm{DWConv}(z, \mathrm{static\_weight}) + \mathrm{static\_bias} + R)

    Args:
        z: hidden features (N, C, H, W); channels-last is the fast layout.
        depthwise_weight: predictor, (C, 1, 3, 3); parameters are float32 or the dtype of ``z``.
        depthwise_bias: predictor, (C,).
        pointwise_weight: predictor, (K, C, 1, 1), 1 ≤ K ≤ 8.
        pointwise_bias: predictor, (K,).
        weight: mixed kernels (K, C, k, k), k ∈ {3, 5, 7}.
        bias: (K, C).
        static_weight: (C, 1, k, k).
        static_bias: (C,).
        gate: ``"softmax"``, ``"sigmoid"`` or ``"none"``.
        return_residual: also return R, for distillation.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``; None: automatic.

    Returns:
        y (N, C, H, W) in the dtype and memory format of ``z``; with ``return_residual`` (y, R).

    Gradients:
        To every tensor argument, through both outputs. Saved are the arguments and the K maps.

    Numerics:
        As :func:`clipweather_fast.ops.sar_conv2d`; the maps pass from one half to the other in the
        dtype of ``z``.

    Reference:
        Eqs. 2-5 of "Exploring the Application of Large-scale Pre-trained Models on Adverse Weather
        Removal" (arXiv 2306.09008), without the Linear layers of eqs. 2 and 3.

    Raises:
        ValueError: shapes, sizes or words outside the above.
        TypeError: an argument that is not a tensor, or of a dtype that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    arguments = _checked(
        z,
        depthwise_weight,
        depthwise_bias,
        pointwise_weight,
        pointwise_bias,
        weight,
        bias,
        static_weight,
        static_bias,
        gate=gate,
        return_residual=return_residual,
    )
    z = arguments[0]
    name = select(OPERATOR, backend, *arguments)
    if name == "reference":
        y, residual = sar_mixer_reference(*arguments[:-1])
    elif name == "cpu":
        y, residual, _ = _registration.call("sar_mixer", *arguments, name)
    else:
        logits = sar_logits(*arguments[:5], backend=name)
        mixed: Tensor | tuple[Tensor, Tensor] = sar_conv2d(
            z,
            logits,
            weight,
            bias,
            static_weight=static_weight,
            static_bias=static_bias,
            gate=gate,
            activation="gelu",
            return_residual=return_residual,
            backend=name,
        )
        return mixed
    return (y, residual) if return_residual else y


def _forward(
    z: Tensor,
    dw: Tensor,
    db: Tensor,
    pw: Tensor,
    pb: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    gate: str,
    return_residual: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    y, residual, logits = _fake(
        z, dw, db, pw, pb, weight, bias, static_weight, static_bias, gate, return_residual, backend
    )
    if z.numel() == 0:
        return y, residual, logits.zero_()
    kernels = (weight, bias, static_weight, static_bias)
    _registration.implementation("sar_mixer", backend).forward(
        z, dw, db, pw, pb, *kernels, gate, y, residual, logits
    )
    return y, residual, logits


def _fake(z: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    kernels, return_residual = rest[4].shape[0], rest[9]
    residual = empty_like_image(z) if return_residual else z.new_empty(0)
    return empty_like_image(z), residual, empty_logits(z, kernels)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:9], output[2])
    ctx.gate, ctx.return_residual, ctx.backend = inputs[9:]
    ctx.mark_non_differentiable(output[2])
    ctx.set_materialize_grads(False)


def _autograd(
    ctx: Any, grad_y: Tensor | None, grad_residual: Tensor | None, grad_logits: None
) -> tuple[Any, ...]:
    if not ctx.return_residual:
        grad_residual = None
    if grad_y is None and grad_residual is None:
        return (None,) * 12
    saved = ctx.saved_tensors
    grads = _registration.call(
        "sar_mixer_backward", grad_y, grad_residual, *saved, ctx.gate, ctx.backend
    )
    wanted = zip(grads, saved[:9], strict=True)
    return (*(None if tensor is None else grad for grad, tensor in wanted), None, None, None)


def _backward(
    grad_y: Tensor | None,
    grad_residual: Tensor | None,
    z: Tensor,
    dw: Tensor,
    db: Tensor,
    pw: Tensor,
    pb: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    static_weight: Tensor | None,
    static_bias: Tensor | None,
    logits: Tensor,
    gate: str,
    backend: str,
) -> tuple[Tensor, ...]:
    parameters = (dw, db, pw, pb, weight, bias, static_weight, static_bias)
    grads = (empty_like_image(z), *(empty_grad(z, p) for p in parameters))
    if z.numel() == 0:
        for grad in grads:
            grad.zero_()
        return grads
    _registration.implementation("sar_mixer", backend).backward(
        grad_y, grad_residual, z, *parameters, logits, gate, grads
    )
    return grads


def _backward_fake(
    grad_y: Tensor | None, grad_residual: Tensor | None, z: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    return empty_like_image(z), *(empty_grad(z, p) for p in rest[:8])


_registration.define(
    "sar_mixer",
    "(Tensor z, Tensor depthwise_weight, Tensor depthwise_bias, Tensor pointwise_weight, "
    "Tensor pointwise_bias, Tensor weight, Tensor? bias, Tensor? static_weight, "
    "Tensor? static_bias, str gate, bool return_residual, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _forward,
    _fake,
)
_registration.define(
    "sar_mixer_backward",
    "(Tensor? grad_y, Tensor? grad_residual, Tensor z, Tensor depthwise_weight, "
    "Tensor depthwise_bias, Tensor pointwise_weight, Tensor pointwise_bias, Tensor weight, "
    "Tensor? bias, Tensor? static_weight, Tensor? static_bias, Tensor logits, str gate, "
    "str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_registration.register_autograd("sar_mixer", _autograd, _setup)
