"""EfficientAttention whole: q, reduction, kv, attention, proj; against the naive attention."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.tokens import TokenSize, random_tokens, token_cases
from benchmarks.subject import Case, Inputs, Subject, Work
from clipweather_fast import ops, use_backend
from clipweather_fast.modules import EfficientAttention


def _inputs(
    size: TokenSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    module = EfficientAttention(size.dim, size.heads, size.reduction)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    x = random_tokens(size, dtype, device, generator)
    return {"module": module.to(device, dtype), "x": x, "H": size.h, "W": size.w}


def _plain(inputs: Inputs) -> Tensor:
    y: Tensor = inputs["module"](inputs["x"], inputs["H"], inputs["W"])
    return y


def _ours(inputs: Inputs, backend: str | None) -> Tensor:
    if backend is None:
        return _plain(inputs)
    with use_backend(backend):
        return _plain(inputs)


def _keys(size: TokenSize) -> int:
    return size.n * (size.h // size.reduction) * (size.w // size.reduction)


def _explain(inputs: Inputs) -> dict[str, str]:
    module, x = inputs["module"], inputs["x"]
    n, tokens, dim = x.shape
    keys = (inputs["H"] // module.sr_ratio) * (inputs["W"] // module.sr_ratio)
    d = dim // module.num_heads
    q = x.new_empty(n, tokens, module.num_heads, d)
    k = x.new_empty(n, keys, module.num_heads, d)
    return ops.explain(ops.reduced_kv_attention, q, k, k)


def _work(size: TokenSize, dtype: torch.dtype, direction: str) -> Work:
    """Linear layers and reduction (twice their forward in a backward pass), and the attention."""
    keys, dim = _keys(size), size.dim
    linear = 2 * size.tokens * dim * dim + 2 * keys * dim * dim
    if size.reduction > 1:
        linear += keys * (size.reduction * dim) * (size.reduction * dim)
    product = size.tokens * keys // size.n * dim
    times, products, passes = {"forward": (1, 2, 2), "backward": (2, 5, 3), "both": (3, 7, 5)}[
        direction
    ]
    return Work(passes * size.tokens * dim * dtype.itemsize, times * linear + products * product)


SUBJECT = Subject(
    topic="efficient_attention",
    inputs=_inputs,
    ours=_ours,
    reference=_plain,
    differentiable=("x", "module.q.weight", "module.kv.weight", "module.proj.weight"),
    rotating=("x",),
    work=_work,
    explain=_explain,
    layouts=("tokens",),
    around=partial(use_backend, "reference"),
    matrix=True,
)

_HEADLINE = {
    ("256x256 stage 4", "both"): "quick",
    ("256x256 stage 1", "forward"): "headline",
    ("256x256 stage 1", "both"): "headline",
}
#: The reference's score matrix of these is several gigabytes, and again in fp64.
_TOO_LARGE = ("1080p stage 1", "1080p stage 2", "480x720 stage 1")


def cases(device: str) -> list[Case]:
    return [c for c in token_cases(device, _HEADLINE) if c.size.name not in _TOO_LARGE]


def test_efficient_attention(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
