"""Linear layers and the operator between them as one step of autograd.

In a step of training on the CPU a node of autograd costs a tenth of a millisecond and more each
way: its code and objects have left the caches while weights passed through. What is computed is
what the layers compute one by one. Whoever differentiates or transforms the gradients gets what the
layers give one by one: second derivatives are refused by the same operators in the same words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules._linear import mixed, takes, unwatched
from clipweather_fast.modules._tokens import as_image, as_tokens, by_heads, keys_and_values
from clipweather_fast.ops import _native, _registration
from clipweather_fast.ops._direct import dispatcher_idle
from clipweather_fast.ops.dense_conv2d.linear import linear_gradients, linear_values
from clipweather_fast.ops.reduced_kv_attention.op import MAX_HEAD_DIM
from clipweather_fast.ops.sar_conv2d.op import KERNEL_SIZES
from clipweather_fast.ops.sar_logits.op import MAX_KERNELS

__all__ = [
    "attention",
    "attention_by_layers",
    "attention_gradients",
    "attention_parameters",
    "attention_values",
    "joins",
    "mixer",
    "mixer_by_layers",
    "mixer_gradients",
    "mixer_parameters",
    "mixer_values",
    "one_by_one",
    "plain",
]


def joins(x: Tensor, first: nn.Linear, *others: nn.Linear) -> bool:
    """Whether layers that read tokens ``x``, or what ``first`` makes of them, may be one step:
    while gradients are enabled, in float32 on the CPU, where our kernels are there."""
    return (
        torch.is_grad_enabled()
        and unwatched(first, *others)
        and takes(x, first.weight, first.bias)
        and _native.why_not_loaded() is None
        and plain(*(p for layer in (first, *others) for p in _parameters(layer)))
        and all(bias is None or bias.shape == w.shape[:1] for w, bias in map(_parameters, others))
    )


def attention(
    x: Tensor,
    source: Tensor,
    layers: tuple[nn.Linear, nn.Linear, nn.Linear],
    heads: int,
    scale: float,
) -> Tensor | None:
    """``proj`` of what tokens ``x`` (N, L, C) read from ``source`` (N, L', C'): queries of one,
    keys and values of the other; None where that is no single step, or no such attention.

    Args:
        layers: ``q``, ``kv`` and ``proj``.
        heads, scale: of the attention.
    """
    if source.dim() != 3 or source.shape[0] != x.shape[0] or source.shape[1] == 0:
        return None
    parameters = attention_parameters(x, layers, source.shape[2], heads, scale)
    if parameters is None or not plain(source):
        return None
    y: Tensor = _Attention.apply(x.contiguous(), source.contiguous(), heads, scale, *parameters)
    return y


def attention_parameters(
    x: Tensor,
    layers: tuple[nn.Linear, nn.Linear, nn.Linear],
    sources: int,
    heads: int,
    scale: float,
) -> list[Tensor | None] | None:
    """Weight and bias of each layer; None where the layers are no single step of ``x`` and of
    others with so many channels."""
    q, kv, proj = layers
    if not (joins(x, *layers) and type(scale) is float):
        return None
    width = q.weight.shape[0]
    if (*kv.weight.shape, proj.weight.shape[1]) != (2 * width, sources, width):
        return None
    if width % heads or width // heads > MAX_HEAD_DIM:
        return None
    return [p for layer in layers for p in _parameters(layer)]


def mixer(
    x: Tensor,
    size: tuple[int, int],
    layers: tuple[nn.Linear, nn.Linear],
    parameters: tuple[Tensor | None, ...],
    gate: str,
) -> Tensor | None:
    """``fc2`` of :func:`ops.sar_mixer` of ``fc1`` of tokens ``x`` (N, H·W, C), for layers that
    :func:`joins` takes; None where they and the operator's parameters do not go together.

    Args:
        size: H, W.
        layers: ``fc1`` and ``fc2``.
        parameters, gate: of the operator.
    """
    given = mixer_parameters(layers, parameters, gate)
    if given is None:
        return None
    y: Tensor = _Mixer.apply(x.contiguous(), size, gate, *given)
    return y


def mixer_parameters(
    layers: tuple[nn.Linear, nn.Linear], parameters: tuple[Tensor | None, ...], gate: str
) -> list[Tensor | None] | None:
    """Weight and bias of each layer, then the operator's parameters; None where they do not go
    together."""
    fc1, fc2 = layers
    channels = fc1.weight.shape[0]
    if fc2.weight.shape[1] != channels or gate not in _native.GATES:
        return None
    if not _mixer_fits(channels, parameters):
        return None
    return [*(p for layer in layers for p in _parameters(layer)), *parameters]


def _parameters(layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return layer.weight, layer.bias


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are float32 on the CPU, and nobody looks at what is done to them."""
    given = tuple(tensor for tensor in tensors if tensor is not None)
    ours = all(t.is_cpu and t.dtype == torch.float32 and t.is_contiguous() for t in given)
    return ours and dispatcher_idle(given)


def _mixer_fits(channels: int, parameters: tuple[Tensor | None, ...]) -> bool:
    """Whether the operator's parameters are such as its kernels read."""
    depthwise, pointwise, weight = parameters[0], parameters[2], parameters[4]
    if depthwise is None or pointwise is None or weight is None or weight.dim() != 4:
        return False
    kernels, _, side, _ = weight.shape
    if not 1 <= kernels <= MAX_KERNELS or side not in KERNEL_SIZES:
        return False
    bank, static = (kernels, channels, side, side), (channels, 1, side, side)
    shapes = (
        *((channels, 1, 3, 3), (channels,), (kernels, channels, 1, 1), (kernels,)),
        *(bank, bank[:2], static, (channels,)),
    )
    given = zip(parameters, shapes, strict=True)
    fits = all(
        p is None or (p.shape == shape and p.is_cpu and p.dtype == torch.float32)
        for p, shape in given
    )
    return fits and dispatcher_idle(parameters)


def one_by_one(
    compute: Any, grad_y: Tensor, inputs: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs that want one, by autograd."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        # Views, because one input may be another one, or be made of it.
        views = [None if x is None else x.view_as(x) for x in inputs]
        wanted = [x for x in views if x is not None and x.requires_grad]
        found = iter(torch.autograd.grad(compute(*views), wanted, grad_y, create_graph=again))
    return tuple(next(found) if x is not None and x.requires_grad else None for x in inputs)


def attention_values(
    x: Tensor, source: Tensor, heads: int, scale: float, parameters: Sequence[Tensor | None]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``proj`` of what ``x`` reads from ``source``, and what its gradients need besides.

    Args:
        parameters: weight and bias of ``q``, ``kv`` and ``proj``.
    """
    wq, bq, wkv, bkv, wp, bp = parameters
    assert wq is not None
    assert wkv is not None
    assert wp is not None
    q, kv = linear_values(x, wq, bq), linear_values(source, wkv, bkv)
    k, v = keys_and_values(kv, heads)
    out, sums = _registration.implemented("reduced_kv_attention")(
        by_heads(q, heads), k, v, scale, "cpu"
    )
    return linear_values(out.flatten(2), wp, bp), (q, kv, out, sums)


def attention_gradients(
    grad_y: Tensor,
    x: Tensor,
    source: Tensor,
    heads: int,
    scale: float,
    parameters: Sequence[Tensor | None],
    found: Sequence[Tensor],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x``, ``source`` and the parameters; of those not ``wanted``, None.

    Args:
        found: what :func:`attention_values` found.
    """
    wq, _, wkv, _, wp, _ = parameters
    assert wq is not None
    assert wkv is not None
    assert wp is not None
    q, kv, out, sums = (tensor.contiguous() for tensor in found)
    grad_out, *of_proj = linear_gradients(
        grad_y, out.flatten(2), wp, (any(wanted[:6]), *wanted[6:8])
    )
    if grad_out is None:
        return *(None,) * 6, *of_proj
    k, v = keys_and_values(kv, heads)
    grad_q, *grad_kv = _registration.implemented("reduced_kv_attention_backward")(
        grad_out.view(out.shape), by_heads(q, heads), k, v, out, sums, scale, "cpu"
    )
    grad_x, *of_q = linear_gradients(grad_q.view(q.shape), x, wq, (wanted[0], *wanted[2:4]))
    grad_source, *of_kv = linear_gradients(
        torch.stack(grad_kv, 2).view(kv.shape), source, wkv, (wanted[1], *wanted[4:6])
    )
    return grad_x, grad_source, *of_q, *of_kv, *of_proj


def attention_by_layers(
    x: Tensor, source: Tensor, heads: int, scale: float, parameters: Sequence[Any]
) -> Tensor:
    """The values of :func:`attention_values`, for autograd."""
    queries = by_heads(mixed(x, *parameters[:2]), heads)
    k, v = keys_and_values(mixed(source, *parameters[2:4]), heads)
    found = ops.reduced_kv_attention(queries, k, v, scale=scale)
    return mixed(found.flatten(2), *parameters[4:])


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, source: Tensor, heads: int, scale: float, *parameters: Tensor | None
    ) -> Tensor:
        y, found = attention_values(x, source, heads, scale, parameters)
        ctx.save_for_backward(x, source, *parameters, *found)
        ctx.heads, ctx.scale = heads, scale
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, source, *rest = ctx.saved_tensors
        parameters, found = rest[:6], rest[6:]
        how, wanted = (ctx.heads, ctx.scale), ctx.needs_input_grad
        if torch.is_grad_enabled() or not dispatcher_idle(grads):

            def compute(x: Tensor, source: Tensor, *p: Any) -> Tensor:
                return attention_by_layers(x, source, *how, p)

            of = one_by_one(compute, grads[0], (x, source, *parameters))
        else:
            flags = (*wanted[:2], *wanted[4:])
            of = attention_gradients(grads[0], x, source, *how, parameters, found, flags)
        return *of[:2], None, None, *of[2:]


def mixer_values(
    x: Tensor, size: tuple[int, int], gate: str, parameters: Sequence[Tensor | None]
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """``fc2`` of the operator of ``fc1`` of ``x``, and what its gradients need besides.

    Args:
        parameters: weight and bias of ``fc1`` and ``fc2``, then the operator's.
    """
    w1, b1, w2, b2, *kernels = parameters
    assert w1 is not None
    assert w2 is not None
    z = linear_values(x, w1, b1)
    y, _, logits = _registration.implemented("sar_mixer")(
        as_image(z, *size), *kernels, gate, False, "cpu"
    )
    hidden = as_tokens(y)
    return linear_values(hidden, w2, b2), (z, hidden, logits)


def mixer_gradients(
    grad_y: Tensor,
    x: Tensor,
    size: tuple[int, int],
    gate: str,
    parameters: Sequence[Tensor | None],
    found: Sequence[Tensor],
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Gradients of ``x`` and the parameters; of those not ``wanted``, None.

    Args:
        found: what :func:`mixer_values` found.
    """
    w1, _, w2, _, *kernels = parameters
    assert w1 is not None
    assert w2 is not None
    z, hidden, logits = found
    inner = any((*wanted[:3], *wanted[5:]))
    grad_hidden, *of_fc2 = linear_gradients(grad_y, hidden, w2, (inner, *wanted[3:5]))
    if grad_hidden is None:
        return *(None,) * 3, *of_fc2, *(None,) * len(kernels)
    z = z.contiguous()
    grad_z, *of_kernels = _registration.implemented("sar_mixer_backward")(
        as_image(grad_hidden, *size), None, as_image(z, *size), *kernels, logits, gate, "cpu"
    )
    grad_x, *of_fc1 = linear_gradients(as_tokens(grad_z), x, w1, tuple(wanted[:3]))
    given = zip(of_kernels, kernels, strict=True)
    own = (None if kernel is None else grad for grad, kernel in given)
    return grad_x, *of_fc1, *of_fc2, *own


def mixer_by_layers(
    x: Tensor, size: tuple[int, int], gate: str, parameters: Sequence[Any]
) -> Tensor:
    """The values of :func:`mixer_values`, for autograd."""
    z = as_image(mixed(x, *parameters[:2]), *size)
    return mixed(as_tokens(ops.sar_mixer(z, *parameters[4:], gate=gate)), *parameters[2:4])


class _Mixer(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, size: tuple[int, int], gate: str, *parameters: Tensor | None
    ) -> Tensor:
        y, found = mixer_values(x, size, gate, parameters)
        ctx.save_for_backward(x, *parameters, *found)
        ctx.how = size, gate
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, *rest = ctx.saved_tensors
        parameters, found = rest[:-3], rest[-3:]
        (size, gate), wanted = ctx.how, ctx.needs_input_grad
        if torch.is_grad_enabled() or not dispatcher_idle(grads):

            def compute(x: Tensor, *p: Any) -> Tensor:
                return mixer_by_layers(x, size, gate, p)

            of = one_by_one(compute, grads[0], (x, *parameters))
        else:
            flags = (wanted[0], *wanted[3:])
            of = mixer_gradients(grads[0], x, size, gate, parameters, found, flags)
        return of[0], None, None, *of[1:]
