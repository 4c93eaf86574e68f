"""reduced_kv_attention: many queries over few keys, at every stage's heads, width and key count."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.shapes import AttentionSize, attention_sizes
from benchmarks.subject import DIRECTIONS, Case, Contestant, Inputs, Subject, Work
from clipweather_fast import ops

_SDPA = {
    "cpu": {"flash": SDPBackend.FLASH_ATTENTION, "math": SDPBackend.MATH},
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "mem-efficient": SDPBackend.EFFICIENT_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "math": SDPBackend.MATH,
    },
}
_BATCHES = {
    "cpu": {"256x256": (1, 4), "480x720": (1,), "1080p": (1,)},
    "cuda": {"256x256": (1, 32), "480x720": (1,), "1080p": (1,)},
}
#: Scores checked at once; the whole matrix of a 1080p stage would be too much in fp64.
_MOST_SCORES_CHECKED = 1 << 24
#: The naive opponent keeps three such matrices; on a GPU it is refused when memory runs out.
_MOST_SCORE_BYTES_CPU = 3 << 30


def _inputs(
    size: AttentionSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    """q, and k and v as the two halves of one Linear layer's output: the strides of the network."""
    q = torch.randn(size.n, size.queries, size.heads, size.d, generator=generator)
    kv = torch.randn(size.n, size.keys, 2 * size.heads, size.d, generator=generator)
    kv = kv.to(device, dtype)
    return {
        "q": q.to(device, dtype),
        "k": kv[:, :, : size.heads].detach(),
        "v": kv[:, :, size.heads :].detach(),
    }


def _ours(inputs: Inputs, backend: str | None) -> torch.Tensor:
    return ops.reduced_kv_attention(**inputs, backend=backend)


def _naive(inputs: Inputs) -> torch.Tensor:
    """Scores, softmax, weighted values, each materialised: what the networks' own code does."""
    q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
    scores = (q @ k.transpose(-2, -1)) * inputs["q"].shape[-1] ** -0.5
    return (scores.softmax(-1) @ v).transpose(1, 2)


def _sdpa(backend: SDPBackend) -> Any:
    def attention(inputs: Inputs) -> torch.Tensor:
        q, k, v = (inputs[name].transpose(1, 2) for name in "qkv")
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v).transpose(1, 2)

    return attention


def _opponents(case: Case, device: str) -> list[Contestant]:
    return [
        Contestant(f"sdpa {name}", _sdpa(backend), "strided")
        for name, backend in _SDPA[device].items()
    ]


def _explain(inputs: Inputs) -> dict[str, str]:
    return ops.explain(ops.reduced_kv_attention, **inputs)


def _work(size: AttentionSize, dtype: torch.dtype, direction: str) -> Work:
    """Two matrix products forward; five backward, for the scores are formed again."""
    q, kv = size.query_elements, 2 * size.key_elements
    product = size.n * size.heads * size.queries * size.keys * size.d
    forward, backward = (2 * q + kv, 2 * product), (3 * q + 2 * kv, 5 * product)
    parts = {"forward": [forward], "backward": [backward], "both": [forward, backward]}[direction]
    return Work(
        sum(elements for elements, _ in parts) * dtype.itemsize, sum(fma for _, fma in parts)
    )


def _gate_size(size: AttentionSize) -> AttentionSize:
    """Fewer queries over the same keys where the whole score matrix would not fit in fp64."""
    per_query = size.n * size.heads * size.keys
    queries = min(size.queries, max(64, _MOST_SCORES_CHECKED // per_query))
    return dataclasses.replace(size, queries=queries)


def _score_bytes(size: AttentionSize) -> int:
    return 4 * size.n * size.heads * size.queries * size.keys


SUBJECT = Subject(
    topic="reduced_kv_attention",
    inputs=_inputs,
    ours=_ours,
    reference=_naive,
    differentiable=("q", "k", "v"),
    rotating=("q", "k", "v"),
    work=_work,
    explain=_explain,
    layouts=("strided",),
    opponents=_opponents,
    gate_size=_gate_size,
    matrix=True,
)

_HEADLINE = {
    ("256x256 stage 4", "float32", "both"): "quick",
    ("256x256 stage 1", "float32", "forward"): "headline",
    ("256x256 stage 1", "bfloat16", "forward"): "headline",
    ("256x256 stage 1", "float32", "both"): "headline",
    ("256x256 stage 2", "float32", "forward"): "headline",
    ("256x256 stage 3", "float32", "forward"): "headline",
    ("256x256 weather prior", "float32", "forward"): "headline",
}
_GPU = {
    ("256x256 batch 32 stage 1", "bfloat16", "forward"),
    ("256x256 batch 32 stage 1", "bfloat16", "both"),
    ("256x256 batch 32 stage 1", "float32", "forward"),
    ("256x256 batch 32 stage 2", "bfloat16", "forward"),
    ("256x256 batch 32 stage 3", "bfloat16", "forward"),
    ("1080p stage 1", "bfloat16", "forward"),
}


def cases(device: str) -> list[Case]:
    found = []
    for size in attention_sizes(_BATCHES[device]):
        if device == "cpu" and _score_bytes(size) > _MOST_SCORE_BYTES_CPU:
            continue
        for dtype in (torch.float32, torch.bfloat16):
            for direction in DIRECTIONS:
                name = (size.name, str(dtype).removeprefix("torch."), direction)
                scope = _HEADLINE.get(name, "full")
                if device == "cuda":
                    scope = "headline" if name in _GPU else "full"
                found.append(Case(size, dtype, direction, scope))
    return found


def test_reduced_kv_attention(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
