"""reduced_kv_attention: the contract, the checks, the choice of backend and the registration."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipweather_fast.ops import _checks, _native, _registration
from clipweather_fast.ops._backends import Operator, explainable, requested_backend, select
from clipweather_fast.ops._triton import why_not_triton
from clipweather_fast.ops.reduced_kv_attention.reference import (
    attention_sdpa,
    reduced_kv_attention_reference,
)

__all__ = ["reduced_kv_attention"]

MAX_HEAD_DIM = 256
#: On a GPU, more keys than this go to PyTorch's own attention when nobody names a backend: the
#: kernels here are made for keys that fit in shared memory.
MOST_KEYS_ON_GPU = 256


def _why_not_cuda(q: Tensor, *rest: Any) -> str | None:
    return _native.why_not_cuda(q)


def _why_not_triton(q: Tensor, *rest: Any) -> str | None:
    return why_not_triton(q)


def _why_not_cpu(q: Tensor, *rest: Any) -> str | None:
    return _native.why_not_cpu(q)


def _why_not_reference(*arguments: Any) -> str | None:
    return None


def _prefers(q: Tensor, k: Tensor, *rest: Any) -> tuple[str, ...]:
    """On a GPU Triton's kernel; for many keys PyTorch's attention.

    The CUDA kernels multiply without tensor cores, so their place behind Triton's stands until a
    measurement shows them ahead; they serve where they are named and where Triton is absent.
    """
    if q.device.type == "cpu":
        return ()
    return ("reference",) if k.shape[1] > MOST_KEYS_ON_GPU else ("triton",)


OPERATOR = Operator(
    "reduced_kv_attention",
    {
        "cuda": _why_not_cuda,
        "triton": _why_not_triton,
        "cpu": _why_not_cpu,
        "reference": _why_not_reference,
    },
    prefers=_prefers,
    automatic={"reference": "PyTorch's scaled_dot_product_attention"},
)


def _checked(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float | None = None
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The documented errors; the arguments in the registered op's order."""
    op = "reduced_kv_attention"
    _tokens(op, "q", q, "Lq")
    _tokens(op, "k", k, "Lk")
    _checks.same_device(op, q, k=k, v=v)
    n, _, heads, d = q.shape
    keys = k.shape[1]
    if not 1 <= d <= MAX_HEAD_DIM:
        raise ValueError(
            f"{op}: the head width d must be 1 to {MAX_HEAD_DIM}, got q {tuple(q.shape)}"
        )
    _checks.shape(op, "k", k, "(N, Lk, heads, d)", (n, keys, heads, d))
    _checks.shape(op, "v", v, "(N, Lk, heads, d)", (n, keys, heads, d))
    if keys == 0:
        raise ValueError(f"{op}: k must hold at least one key, got Lk = 0")
    if scale is not None and not isinstance(scale, (int, float)):
        raise TypeError(f"{op}: scale must be a number or None, got {type(scale).__name__}")
    q, k, v = _checks.autocast(q, k, v)
    _checks.same_dtype(op, q, k=k, v=v)
    return q, k, v, d**-0.5 if scale is None else float(scale)


def _tokens(op: str, name: str, value: Any, length: str) -> None:
    _checks.tensor(op, name, value)
    if value.dim() != 4:
        raise ValueError(f"{op}: {name} must be (N, {length}, heads, d), got {tuple(value.shape)}")


@explainable(OPERATOR, _checked)
def reduced_kv_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float | None = None,
    backend: str | None = None,
) -> Tensor:
    r"""Every pixel attends to a reduced image (or to a few prior tokens), in one pass.

    .. math::
        \mathrm{out} = \mathrm{softmax}(\mathrm{scale} \cdot q k^T) \, v

    per image and head. The scores are never materialised.

    Args:
        q: queries (N, Lq, heads, d), 1 ≤ d ≤ 256. Any strides; a contiguous last axis, as the
            Linear layers leave it, is read in place, other layouts are copied.
        k: keys (N, Lk, heads, d) in the dtype of ``q``, Lk ≥ 1.
        v: values (N, Lk, heads, d), likewise.
        scale: factor of the scores; None: d^-1/2.
        backend: ``"cuda"``, ``"triton"``, ``"cpu"``, ``"reference"``; None: the context's or the
            best. The automatic choice on a GPU is Triton before ``"cuda"``; with more than 256
            keys there, and wherever no kernel can run, it is PyTorch's
            ``scaled_dot_product_attention``; ``"reference"`` by name is the definition, scores
            and all.

    Returns:
        (N, Lq, heads, d), contiguous, in the dtype of ``q``; empty where N, Lq or heads is 0.

    Gradients:
        To q, k and v. Saved are the arguments, the result and one log-sum-exp per row; the weights
        are recomputed.

    Numerics:
        Sums, softmax and gradients are formed in fp32 (fp64 for float64); for bfloat16 the weights
        are rounded to bfloat16 before they multiply the values, where the processor multiplies
        bfloat16. No atomics: results repeat bit for bit. A NaN in a query makes that row of the
        result NaN and touches no other. Under autocast q, k and v take the autocast dtype.

    Reference:
        Spatial-reduction attention of PVT (arXiv 2102.12122, eq. 1-3), as in TransWeather.

    Raises:
        ValueError: shapes or sizes outside the above, or mixed devices.
        TypeError: an argument that is not a tensor, or of a dtype that does not fit.
        BackendUnavailable: the named backend cannot run this call.
    """
    arguments = _checked(q, k, v, scale=scale)
    name = select(OPERATOR, backend, *arguments)
    if name == "reference":
        named = (requested_backend() if backend is None else backend) == "reference"
        return (reduced_kv_attention_reference if named else attention_sdpa)(*arguments)
    out: Tensor = _registration.call("reduced_kv_attention", *arguments, name)[0]
    return out


def _forward(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    out, lse = _fake(q, k, v, scale, backend)
    if out.numel() > 0:
        q, k, v = map(_rows_contiguous, (q, k, v))
        _registration.implementation(OPERATOR.name, backend).forward(q, k, v, scale, out, lse)
    return out, lse


def _fake(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    n, queries, heads, _ = q.shape
    return q.new_empty(q.shape), q.new_empty((n, heads, queries), dtype=dtype)


def _backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _backward_fake(grad, q, k, v)
    if q.numel() == 0:
        for empty in grads:
            empty.zero_()
        return grads
    q, k, v = map(_rows_contiguous, (q, k, v))
    _registration.implementation(OPERATOR.name, backend).backward(
        grad.contiguous(), q, k, v, out, lse, scale, grads
    )
    return grads


def _backward_fake(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _rows_contiguous(tensor: Tensor) -> Tensor:
    """The tensor itself where its last axis is contiguous, else a copy."""
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, ctx.backend = inputs
    out, lse = output
    ctx.save_for_backward(q, k, v, out, lse)
    ctx.mark_non_differentiable(lse)
    ctx.set_materialize_grads(False)


def _autograd(ctx: Any, grad: Tensor | None, grad_lse: Tensor | None) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 5
    saved = ctx.saved_tensors  # read once: under activation checkpointing a second time raises
    grads = _registration.call(
        "reduced_kv_attention_backward", grad, *saved, ctx.scale, ctx.backend
    )
    return (*grads, None, None)


_registration.define(
    "reduced_kv_attention",
    "(Tensor q, Tensor k, Tensor v, float scale, str backend) -> (Tensor, Tensor)",
    _forward,
    _fake,
)
_registration.define(
    "reduced_kv_attention_backward",
    "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, float scale, str backend)"
    " -> (Tensor, Tensor, Tensor)",
    _backward,
    _backward_fake,
)
_registration.register_autograd("reduced_kv_attention", _autograd, _setup)
