"""depthwise_conv2d: kernel, bias and GELU; the middle of PVTv2's feed-forward block."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.ops.sar_inputs import GPU_EXTRA, image, image_cases, parameter
from benchmarks.shapes import ImageSize
from benchmarks.subject import Case, Inputs, Subject, Work
from clipweather_fast import ops
from clipweather_fast.ops.depthwise_conv2d.reference import depthwise_conv2d_reference


def _inputs(
    size: ImageSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    return {
        "x": image(size, size.c, dtype, device, layout, generator),
        "weight": parameter((size.c, 1, 3, 3), dtype, device, generator),
        "bias": parameter((size.c,), dtype, device, generator),
    }


def _ours(inputs: Inputs, backend: str | None) -> torch.Tensor:
    return ops.depthwise_conv2d(**inputs, activation="gelu", backend=backend)


def _reference(inputs: Inputs) -> torch.Tensor:
    return depthwise_conv2d_reference(**inputs, activation="gelu")


def _explain(inputs: Inputs) -> dict[str, str]:
    return ops.explain(ops.depthwise_conv2d, **inputs, activation="gelu")


def _work(size: ImageSize, dtype: torch.dtype, direction: str) -> Work:
    """Backward: the pre-activation again, dx and the kernel's gradient."""
    e = size.elements
    passes, fma = {"forward": (2, 9), "backward": (3, 27), "both": (5, 36)}[direction]
    parts = 2 if direction == "both" else 1
    return Work(passes * e * dtype.itemsize, fma * e, e * GPU_EXTRA * parts)


SUBJECT = Subject(
    topic="depthwise_conv2d",
    inputs=_inputs,
    ours=_ours,
    reference=_reference,
    differentiable=("x", "weight", "bias"),
    rotating=("x",),
    work=_work,
    explain=_explain,
)

_HEADLINE = {
    ("256x256 stage 4", "float32", "both"): "quick",
    ("256x256 stage 1", "float32", "forward"): "headline",
    ("256x256 stage 1", "float32", "both"): "headline",
    ("256x256 stage 1", "bfloat16", "forward"): "headline",
    ("1080p stage 1", "float32", "forward"): "headline",
}

_GPU = {
    ("256x256 batch 32 stage 1", "bfloat16", "forward"),
    ("256x256 batch 32 stage 1", "bfloat16", "both"),
}


def cases(device: str) -> list[Case]:
    return image_cases(device, _HEADLINE, _GPU)


def test_depthwise_conv2d(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
