"""Half a block, x + branch(LN(x)), as one step of autograd.

Between the branches of a block lie a sum and a normalisation, which take more of a training step on
the CPU as nodes of autograd than as arithmetic: see :mod:`clipweather_fast.modules._joined_layers`,
whose steps these contain. What is computed is what the layers compute one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.modules._joined_layers import (
    attention_by_layers,
    attention_gradients,
    attention_parameters,
    attention_values,
    joins,
    mixer_by_layers,
    mixer_gradients,
    mixer_parameters,
    mixer_values,
    one_by_one,
    plain,
)
from clipweather_fast.modules._joint import joined
from clipweather_fast.modules._linear import mixed
from clipweather_fast.modules._observation import untouched
from clipweather_fast.modules._reduction import (
    back_from_windows,
    sees_windows,
    weight_rows,
    windows,
)
from clipweather_fast.modules._residual_norm import normed, normed_gradients
from clipweather_fast.modules.efficient_attention import EfficientAttention
from clipweather_fast.modules.sar_ffn import SARFFN
from clipweather_fast.ops._direct import dispatcher_idle
from clipweather_fast.ops.dense_conv2d.linear import linear_gradients, linear_values

__all__ = ["plus_attention", "plus_feed_forward"]

#: Of tokens: what stays of each image's branch, (N, 1, 1), or None where all of it does.
Kept = Callable[[Tensor], Tensor | None]
NO_REDUCTION: list[Tensor | None] = [None] * 4


class _Attends(NamedTuple):
    """What is no tensor."""

    size: tuple[int, int]
    window: tuple[int, int]
    heads: int
    scale: float
    eps: tuple[float, float]


class _Mixes(NamedTuple):
    """What is no tensor."""

    size: tuple[int, int]
    gate: str
    eps: float


def plus_attention(
    x: Tensor, size: tuple[int, int], norm: nn.Module, attn: nn.Module, kept: Kept
) -> Tensor | None:
    """x + attn(norm(x)) of tokens (N, H·W, C), dense; None where that is no single step, because
    somebody has a say in a layer, or it is none of ours, or does not fit.

    Args:
        size: H, W.
        kept: what stays of the branch; asked only where there is a single step.
    """
    if type(attn) is not EfficientAttention or joined():
        return None
    if not (untouched(attn, attn.attn_drop, attn.proj_drop) and _tokens(x, size)):
        return None
    # Attention weights are dropped where the module learns, whatever the layer says.
    if attn.training and attn.attn_drop.p > 0:
        return None
    if _drops(attn.attn_drop) or _drops(attn.proj_drop):
        return None
    s, channels = attn.sr_ratio, x.shape[2]
    layers = attn.q, attn.kv, attn.proj
    parameters = attention_parameters(x, layers, channels, attn.num_heads, attn.scale)
    if parameters is None or attn.proj.weight.shape[0] != channels:
        return None
    first = _norm(norm, channels)
    if first is None:
        return None
    eps, second = 0.0, NO_REDUCTION
    if s > 1:
        found = _reduction(attn, size, channels)
        if found is None:
            return None
        eps, *second = found
    how = _Attends(size, (s, s), attn.num_heads, attn.scale, (first.eps, eps))
    y: Tensor = _PlusAttention.apply(
        x, how, kept(x), first.weight, first.bias, *parameters, *second
    )
    return y


def plus_feed_forward(
    x: Tensor, size: tuple[int, int], norm: nn.Module, mlp: nn.Module, kept: Kept
) -> Tensor | None:
    """x + mlp(norm(x)), as :func:`plus_attention`."""
    if type(mlp) is not SARFFN or not (untouched(mlp) and _tokens(x, size)):
        return None
    channels = x.shape[2]
    first = _norm(norm, channels)
    if first is None or not (joins(x, mlp.fc1, mlp.fc2) and mlp.is_single_step()):
        return None
    kernels, gate = mlp.mixer_arguments()
    parameters = mixer_parameters((mlp.fc1, mlp.fc2), kernels, gate)
    if parameters is None or mlp.fc2.weight.shape[0] != channels:
        return None
    how = _Mixes(size, gate, first.eps)
    y: Tensor = _PlusFeedForward.apply(x, how, kept(x), first.weight, first.bias, *parameters)
    return y


def _tokens(x: Tensor, size: tuple[int, int]) -> bool:
    return x.dim() == 3 and x.numel() > 0 and x.shape[1] == size[0] * size[1] and plain(x)


def _drops(layer: nn.Module) -> bool:
    return type(layer) is not nn.Dropout or (layer.training and layer.p > 0)


def _norm(norm: nn.Module, channels: int) -> nn.LayerNorm | None:
    """PyTorch's own normalisation over so many channels, with weight and bias."""
    if type(norm) is not nn.LayerNorm or not untouched(norm):
        return None
    weight: Tensor | None = norm.weight
    bias: Tensor | None = norm.bias
    if norm.normalized_shape != (channels,) or weight is None or bias is None:
        return None
    fits = plain(weight, bias) and weight.shape == bias.shape == (channels,)
    return norm if fits else None


def _reduction(
    attn: EfficientAttention, size: tuple[int, int], channels: int
) -> tuple[float, Tensor, Tensor | None, Tensor, Tensor] | None:
    """What makes keys and values fewer: eps of the norm, weight and bias of the convolution and of
    the norm."""
    s, convolution = attn.sr_ratio, attn.sr
    if min(size) < s or not (untouched(convolution) and sees_windows(convolution)):
        return None
    weight, bias = convolution.weight, convolution.bias
    if convolution.stride != (s, s) or weight.shape != (channels, channels, s, s):
        return None
    if bias is not None and not (plain(bias) and bias.shape == (channels,)):
        return None
    norm = _norm(attn.norm, channels)
    # It may be dense in another order.
    float32 = weight.is_cpu and weight.dtype == torch.float32 and dispatcher_idle((weight,))
    if norm is None or not float32:
        return None
    return norm.eps, weight, bias, norm.weight, norm.bias


def _added(x: Tensor, branch: Tensor, kept: Tensor | None) -> Tensor:
    """x + branch · kept, in the memory of the branch."""
    return branch.add_(x) if kept is None else torch.addcmul(x, branch, kept, out=branch)


def _of_branch(grad_y: Tensor, kept: Tensor | None) -> Tensor:
    return grad_y if kept is None else grad_y * kept


def _left(branch: Tensor, kept: Tensor | None) -> Tensor:
    return branch if kept is None else branch * kept


def _source(
    h: Tensor, how: _Attends, reduction: Sequence[Tensor | None]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What keys and values come from, and, if it is not ``h``, what its gradients need."""
    weight, bias, of_norm, of_norm_bias = reduction
    if weight is None:
        return h, ()
    assert of_norm is not None
    assert of_norm_bias is not None
    seen = windows(h, *how.size, how.window)
    reduced = linear_values(seen, weight_rows(weight).contiguous(), bias)
    return normed(reduced, of_norm, of_norm_bias, how.eps[1]), (seen, reduced)


class _PlusAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, how: _Attends, kept: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        weight, bias, *rest = parameters
        assert weight is not None
        assert bias is not None
        h = normed(x, weight, bias, how.eps[0])
        source, of_source = _source(h, how, rest[6:])
        branch, found = attention_values(h, source, how.heads, how.scale, rest[:6])
        ctx.save_for_backward(x, kept, *parameters, h, source, *found, *of_source)
        ctx.how = how
        return _added(x, branch, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, kept, *rest = ctx.saved_tensors
        how, wanted = ctx.how, ctx.needs_input_grad
        parameters, (h, source, *found) = rest[:12], rest[12:]
        if torch.is_grad_enabled() or not dispatcher_idle(grads):

            def compute(x: Tensor, *p: Any) -> Tensor:
                return x + _left(_attention_by_layers(x, how, p), kept)

            of = one_by_one(compute, grads[0], (x, *parameters))
            return of[0], None, None, *of[1:]
        grad_y = grads[0].contiguous()
        flags = wanted[0], *wanted[3:]  # x, norm, q, kv, proj, sr, norm of sr
        inner, through = any(flags[:3]), any((*flags[:3], *flags[9:]))
        grad_h, grad_source, *of_layers = attention_gradients(
            _of_branch(grad_y, kept),
            *(h, source, how.heads, how.scale, parameters[2:8], found[:4]),
            (inner, through, *flags[3:9]),
        )
        of_reduction: Sequence[Tensor | None] = NO_REDUCTION
        if parameters[8] is None:
            if grad_h is not None and grad_source is not None:
                grad_h += grad_source
        elif grad_source is not None:
            of_reduction = _reduction_gradients(
                grad_source, grad_h, how, parameters[8:], found[4:], flags[9:]
            )
        of_norm = _norm_gradients(grad_h, x, parameters, how.eps[0], flags, grad_y)
        return of_norm[0], None, None, *of_norm[1:], *of_layers, *of_reduction


def _norm_gradients(
    grad_h: Tensor | None,
    x: Tensor,
    parameters: Sequence[Tensor],
    eps: float,
    wanted: Sequence[bool],
    grad_y: Tensor,
) -> tuple[Tensor | None, ...]:
    """Gradients of x, which is added to the branch, and of the norm's parameters."""
    if grad_h is None:
        return None, None, None
    flags = tuple(wanted[:3])
    return normed_gradients(grad_h, x.contiguous(), parameters[0], eps, flags, grad_y)


def _reduction_gradients(
    grad_source: Tensor,
    grad_h: Tensor | None,
    how: _Attends,
    parameters: Sequence[Tensor],
    found: Sequence[Tensor],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Adds to ``grad_h``, unless it is None, and gives the gradients of the parameters."""
    weight, _, of_norm, _ = parameters
    seen, reduced = (tensor.contiguous() for tensor in found)
    first = grad_h is not None or any(wanted[:2])
    grad_reduced, *of_norm_parameters = normed_gradients(
        grad_source.contiguous(), reduced, of_norm, how.eps[1], (first, *wanted[2:4])
    )
    if grad_reduced is None:
        return None, None, *of_norm_parameters
    rows = weight_rows(weight).contiguous()
    grad_seen, grad_rows, grad_bias = linear_gradients(
        grad_reduced, seen, rows, (grad_h is not None, *wanted[:2])
    )
    if grad_h is not None and grad_seen is not None:
        back_from_windows(grad_seen, grad_h, *how.size, how.window)
    grad_weight = None
    if grad_rows is not None:
        out, inputs, s, _ = weight.shape
        grad_weight = grad_rows.view(out, s, s, inputs).permute(0, 3, 1, 2)
    return grad_weight, grad_bias, *of_norm_parameters


def _attention_by_layers(x: Tensor, how: _Attends, parameters: Sequence[Any]) -> Tensor:
    h = F.layer_norm(x, x.shape[-1:], parameters[0], parameters[1], how.eps[0])
    weight, bias, of_norm, of_norm_bias = parameters[8:]
    source = h
    if weight is not None:
        seen = windows(h, *how.size, how.window)
        reduced = mixed(seen, weight_rows(weight), bias)
        source = F.layer_norm(reduced, reduced.shape[-1:], of_norm, of_norm_bias, how.eps[1])
    return attention_by_layers(h, source, how.heads, how.scale, parameters[2:8])


class _PlusFeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, how: _Mixes, kept: Tensor | None, *parameters: Tensor | None
    ) -> Tensor:
        weight, bias, *rest = parameters
        assert weight is not None
        assert bias is not None
        h = normed(x, weight, bias, how.eps)
        branch, found = mixer_values(h, how.size, how.gate, rest)
        ctx.save_for_backward(x, kept, *parameters, h, *found)
        ctx.how = how
        return _added(x, branch, kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, kept, *rest = ctx.saved_tensors
        how, wanted = ctx.how, ctx.needs_input_grad
        parameters, (h, *found) = rest[:-4], rest[-4:]
        if torch.is_grad_enabled() or not dispatcher_idle(grads):

            def compute(x: Tensor, *p: Any) -> Tensor:
                h = F.layer_norm(x, x.shape[-1:], p[0], p[1], how.eps)
                return x + _left(mixer_by_layers(h, how.size, how.gate, p[2:]), kept)

            of = one_by_one(compute, grads[0], (x, *parameters))
            return of[0], None, None, *of[1:]
        grad_y = grads[0].contiguous()
        flags = wanted[0], *wanted[3:]
        grad_h, *of_layers = mixer_gradients(
            _of_branch(grad_y, kept),
            *(h, how.size, how.gate, parameters[2:], found),
            (any(flags[:3]), *flags[3:]),
        )
        of_norm = _norm_gradients(grad_h, x, parameters, how.eps, flags, grad_y)
        return of_norm[0], None, None, *of_norm[1:], *of_layers
