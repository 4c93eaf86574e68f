"""sar_logits: the weight-map predictor, depthwise 3×3, GELU, 1×1 to K = 3 maps."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.ops.sar_inputs import GPU_EXTRA, image, image_cases, predictor
from benchmarks.shapes import ImageSize
from benchmarks.subject import Case, Inputs, Subject, Work
from clipweather_fast import ops
from clipweather_fast.ops.sar_logits.reference import sar_logits_reference


def _inputs(
    size: ImageSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    x = image(size, size.c, dtype, device, layout, generator)
    return {"x": x, **predictor(size, dtype, device, generator)}


def _ours(inputs: Inputs, backend: str | None) -> torch.Tensor:
    return ops.sar_logits(**inputs, backend=backend)


def _reference(inputs: Inputs) -> torch.Tensor:
    return sar_logits_reference(**inputs)


def _explain(inputs: Inputs) -> dict[str, str]:
    return ops.explain(ops.sar_logits, **inputs)


def work(size: ImageSize, dtype: torch.dtype, direction: str) -> Work:
    """Backward: the hidden image again, its gradient from the K maps, dx and both weights'."""
    e, k = size.elements, size.kernels
    maps = k * size.pixels
    forward, backward = (e + maps, 9 + k), (2 * e + maps, 27 + 2 * k)
    parts = {"forward": [forward], "backward": [backward], "both": [forward, backward]}[direction]
    moved = sum(elements for elements, _ in parts) * dtype.itemsize
    return Work(moved, e * sum(fma for _, fma in parts), e * GPU_EXTRA * len(parts))


SUBJECT = Subject(
    topic="sar_logits",
    inputs=_inputs,
    ours=_ours,
    reference=_reference,
    differentiable=(
        "x",
        "depthwise_weight",
        "depthwise_bias",
        "pointwise_weight",
        "pointwise_bias",
    ),
    rotating=("x",),
    work=work,
    explain=_explain,
)

_HEADLINE = {
    ("256x256 stage 4", "float32", "both"): "quick",
    ("256x256 stage 1", "float32", "forward"): "headline",
    ("256x256 stage 1", "float32", "both"): "headline",
    ("1080p stage 1", "float32", "forward"): "headline",
}

_GPU = {
    ("256x256 batch 32 stage 1", "bfloat16", "forward"),
    ("256x256 batch 32 stage 1", "bfloat16", "both"),
}


def cases(device: str) -> list[Case]:
    return image_cases(device, _HEADLINE, _GPU)


def test_sar_logits(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
