"""Linear layers and the operator between them as one step of autograd.

In a step of training on the CPU a node of autograd costs a tenth of a millisecond and more each
way: its code and objects have left the caches while weights passed through. What is computed is
what the layers compute one by one. Whoever wants second derivatives, or transforms gradients, gets
them from the layers one by one.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules._linear import gains, mixed, unwatched
from clipweather_fast.modules._tokens import as_image, as_tokens, by_heads, keys_and_values
from clipweather_fast.ops import _registration
from clipweather_fast.ops._direct import dispatcher_idle
from clipweather_fast.ops.dense_conv2d.linear import linear_gradients, linear_values

__all__ = ["attention", "joins", "mixer"]


def joins(x: Tensor, first: nn.Linear, *others: nn.Linear) -> bool:
    """Whether layers that read tokens ``x``, or what ``first`` makes of them, may be one step: in
    training, where our products serve ``first``, see :mod:`clipweather_fast.modules._linear`."""
    return (
        torch.is_grad_enabled()
        and unwatched(first, *others)
        and gains(x, first.weight, first.bias)
        and all(
            parameter is None or (parameter.dtype == torch.float32 and parameter.is_contiguous())
            for layer in (first, *others)
            for parameter in (layer.weight, layer.bias)
        )
        and dispatcher_idle(tuple(t for layer in others for t in (layer.weight, layer.bias)))
    )


def attention(
    x: Tensor,
    source: Tensor,
    layers: tuple[nn.Linear, nn.Linear, nn.Linear],
    heads: int,
    scale: float,
) -> Tensor | None:
    """``proj`` of what tokens ``x`` (N, L, C) read from ``source`` (N, L', C): queries of one,
    keys and values of the other; None where :func:`joins` does not hold.

    Args:
        layers: ``q``, ``kv`` and ``proj``.
        heads, scale: of the attention.
    """
    q, kv, proj = layers
    width = q.out_features
    if not joins(x, *layers) or source.dtype != x.dtype or not dispatcher_idle((source,)):
        return None
    shapes = q.weight.shape[0], tuple(kv.weight.shape), proj.weight.shape[1]
    if shapes != (width, (2 * width, source.shape[2]), width) or width % heads:
        return None
    if not all(_biased(layer) for layer in layers):
        return None
    parameters = [p for layer in layers for p in (layer.weight, layer.bias)]
    y: Tensor = _Attention.apply(x.contiguous(), source.contiguous(), heads, scale, *parameters)
    return y


def mixer(
    x: Tensor,
    size: tuple[int, int],
    layers: tuple[nn.Linear, nn.Linear],
    parameters: tuple[Tensor | None, ...],
    gate: str,
) -> Tensor | None:
    """``fc2`` of :func:`ops.sar_mixer` of ``fc1`` of tokens ``x`` (N, H·W, C); None where
    :func:`joins` does not hold.

    Args:
        size: H, W.
        layers: ``fc1`` and ``fc2``.
        parameters, gate: of the operator.
    """
    fc1, fc2 = layers
    if not joins(x, *layers) or fc2.weight.shape[1] != fc1.weight.shape[0]:
        return None
    fits = _mixer_fits(fc1.weight.shape[0], parameters)
    if not (fits and all(map(_biased, layers)) and dispatcher_idle(parameters)):
        return None
    linear = [p for layer in layers for p in (layer.weight, layer.bias)]
    y: Tensor = _Mixer.apply(x.contiguous(), size, gate, *linear, *parameters)
    return y


def _biased(layer: nn.Linear) -> bool:
    return layer.bias is None or layer.bias.shape == layer.weight.shape[:1]


def _mixer_fits(channels: int, parameters: tuple[Tensor | None, ...]) -> bool:
    """Whether the operator's parameters have the shapes that its kernels read."""
    depthwise, pointwise, weight = parameters[0], parameters[2], parameters[4]
    if depthwise is None or pointwise is None or weight is None or weight.dim() != 4:
        return False
    kernels, _, side, _ = weight.shape
    bank, static = (kernels, channels, side, side), (channels, 1, side, side)
    shapes = (
        *((channels, 1, 3, 3), (channels,), (kernels, channels, 1, 1), (kernels,)),
        *(bank, bank[:2], static, (channels,)),
    )
    return all(
        p is None or (p.dtype == torch.float32 and p.shape == shape)
        for p, shape in zip(parameters, shapes, strict=True)
    )


def _one_by_one(compute: Any, grad_y: Tensor, inputs: tuple[Tensor | None, ...]) -> list[Any]:
    """Gradients that can be differentiated again, of the inputs that want one."""
    with torch.enable_grad():
        # Views, because one input may be another one, or be made of it.
        views = [None if x is None else x.view_as(x) for x in inputs]
        wanted = [x for x in views if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(compute(*views), wanted, grad_y, create_graph=True))
    return [next(found) if x is not None and x.requires_grad else None for x in inputs]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Tensor, heads: int, scale: float, *parameters: Tensor | None
    ) -> Tensor:
        wq, bq, wkv, bkv, wp, bp = parameters
        assert wq is not None
        assert wkv is not None
        assert wp is not None
        q, kv = linear_values(x, wq, bq), linear_values(source, wkv, bkv)
        k, v = keys_and_values(kv, heads)
        out, sums = _registration.implemented("reduced_kv_attention")(
            by_heads(q, heads), k, v, scale, "cpu"
        )
        ctx.save_for_backward(x, source, *parameters, q, kv, out, sums)
        ctx.heads, ctx.scale = heads, scale
        return linear_values(out.flatten(2), wp, bp)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, source, *parameters, q, kv, out, sums = ctx.saved_tensors
        heads, scale, wanted = ctx.heads, ctx.scale, ctx.needs_input_grad
        if torch.is_grad_enabled() or not dispatcher_idle(grads):

            def compute(x: Tensor, source: Tensor, *p: Any) -> Tensor:
                queries = by_heads(mixed(x, *p[:2]), heads)
                k, v = keys_and_values(mixed(source, *p[2:4]), heads)
                found = ops.reduced_kv_attention(queries, k, v, scale=scale)
                return mixed(found.flatten(2), *p[4:])

            found = _one_by_one(compute, grads[0], (x, source, *parameters))
            return *found[:2], None, None, *found[2:]
        wq, _, wkv, _, wp, _ = parameters
        grad_out, *of_proj = linear_gradients(grads[0], out.flatten(2), wp, (True, *wanted[8:]))
        assert grad_out is not None
        k, v = keys_and_values(kv, heads)
        grad_q, *grad_kv = _registration.implemented("reduced_kv_attention_backward")(
            grad_out.view(out.shape), by_heads(q, heads), k, v, out, sums, scale, "cpu"
        )
        grad_x, *of_q = linear_gradients(grad_q.view(q.shape), x, wq, (wanted[0], *wanted[4:6]))
        grad_source, *of_kv = linear_gradients(
            torch.stack(grad_kv, 2).view(kv.shape), source, wkv, (wanted[1], *wanted[6:8])
        )
        return grad_x, grad_source, None, None, *of_q, *of_kv, *of_proj


class _Mixer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, size: tuple[int, int], gate: str, *parameters: Tensor | None
    ) -> Tensor:
        w1, b1, w2, b2, *kernels = parameters
        assert w1 is not None
        assert w2 is not None
        z = linear_values(x, w1, b1)
        y, _, logits = _registration.implemented("sar_mixer")(
            as_image(z, *size), *kernels, gate, False, "cpu"
        )
        hidden = as_tokens(y)
        ctx.save_for_backward(x, *parameters, z, hidden, logits)
        ctx.size, ctx.gate = size, gate
        return linear_values(hidden, w2, b2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *parameters, z, hidden, logits = ctx.saved_tensors
        size, gate, wanted = ctx.size, ctx.gate, ctx.needs_input_grad
        if torch.is_grad_enabled() or not dispatcher_idle(grads):

            def compute(x: Tensor, *p: Any) -> Tensor:
                z = as_image(mixed(x, *p[:2]), *size)
                return mixed(as_tokens(ops.sar_mixer(z, *p[4:], gate=gate)), *p[2:4])

            found = _one_by_one(compute, grads[0], (x, *parameters))
            return found[0], None, None, *found[1:]
        w1, _, w2, _, *kernels = parameters
        grad_hidden, *of_fc2 = linear_gradients(grads[0], hidden, w2, (True, *wanted[5:7]))
        assert grad_hidden is not None
        grad_z, *of_kernels = _registration.implemented("sar_mixer_backward")(
            as_image(grad_hidden, *size), None, as_image(z, *size), *kernels, logits, gate, "cpu"
        )
        grad_x, *of_fc1 = linear_gradients(as_tokens(grad_z), x, w1, (wanted[0], *wanted[3:5]))
        given = zip(of_kernels, kernels, strict=True)
        own = (None if kernel is None else grad for grad, kernel in given)
        return grad_x, None, None, *of_fc1, *of_fc2, *own
