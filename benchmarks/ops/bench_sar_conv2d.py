"""sar_conv2d: K = 3 softmax-mixed kernels, a static kernel, biases and GELU."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.ops.sar_inputs import GPU_EXTRA, image, image_cases, mixed_kernels
from benchmarks.shapes import ImageSize
from benchmarks.subject import Case, Inputs, Subject, Work
from clipweather_fast import ops
from clipweather_fast.ops.sar_conv2d.reference import sar_conv2d_reference

_OPTIONS: dict[str, Any] = {"gate": "softmax", "activation": "gelu"}


def _inputs(
    size: ImageSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    return {
        "x": image(size, size.c, dtype, device, layout, generator),
        "logits": image(size, size.kernels, dtype, device, layout, generator),
        **mixed_kernels(size, dtype, device, generator),
    }


def _ours(inputs: Inputs, backend: str | None) -> torch.Tensor:
    return ops.sar_conv2d(**inputs, **_OPTIONS, backend=backend)


def _reference(inputs: Inputs) -> torch.Tensor:
    return sar_conv2d_reference(**inputs, **_OPTIONS)[0]


def _explain(inputs: Inputs) -> dict[str, str]:
    return ops.explain(ops.sar_conv2d, **inputs, **_OPTIONS)


def work(size: ImageSize, dtype: torch.dtype, direction: str) -> Work:
    """Softmax weights sum to one, so K kernels and the static one cost K convolutions and K - 1
    multiply-adds of mixing; backward forms the pre-activation again, then dx, the K + 1 kernel
    gradients and the K dot products of the maps."""
    e, k = size.elements, size.kernels
    maps = k * size.pixels
    once = 9 * k + k - 1
    forward = (2 * e + maps, once)
    backward = (3 * e + 2 * maps, 2 * once + 9 * (k + 1) + k)
    parts = {"forward": [forward], "backward": [backward], "both": [forward, backward]}[direction]
    moved = sum(elements for elements, _ in parts) * dtype.itemsize
    return Work(moved, e * sum(fma for _, fma in parts), e * GPU_EXTRA * len(parts))


SUBJECT = Subject(
    topic="sar_conv2d",
    inputs=_inputs,
    ours=_ours,
    reference=_reference,
    differentiable=("x", "logits", "weight", "bias", "static_weight", "static_bias"),
    rotating=("x", "logits"),
    work=work,
    explain=_explain,
)

_HEADLINE = {
    ("256x256 stage 4", "float32", "both"): "quick",
    ("256x256 stage 1", "float32", "forward"): "quick",
    ("256x256 stage 2", "float32", "forward"): "headline",
    ("256x256 stage 3", "float32", "forward"): "headline",
    ("256x256 stage 4", "float32", "forward"): "headline",
    ("256x256 stage 1", "float32", "backward"): "headline",
    ("256x256 stage 1", "float32", "both"): "headline",
    ("256x256 stage 2", "float32", "both"): "headline",
    ("480x720 stage 1", "float32", "forward"): "headline",
    ("1080p stage 1", "float32", "forward"): "headline",
    ("1080p stage 2", "float32", "forward"): "headline",
    ("1080p stage 2", "float32", "both"): "headline",
    ("256x256 stage 1", "bfloat16", "forward"): "quick",
    ("256x256 stage 2", "bfloat16", "forward"): "headline",
    ("1080p stage 1", "bfloat16", "forward"): "headline",
}

_GPU = {
    ("256x256 batch 32 stage 1", "float32", "forward"),
    ("256x256 batch 32 stage 1", "bfloat16", "forward"),
    ("1080p stage 1", "float32", "forward"),
    ("1080p stage 1", "bfloat16", "forward"),
    ("256x256 batch 32 stage 1", "float32", "both"),
    ("256x256 batch 32 stage 1", "bfloat16", "both"),
    ("256x256 batch 32 stage 1", "float32", "backward"),
    ("256x256 batch 32 stage 1", "bfloat16", "backward"),
    ("256x256 stage 1", "float32", "forward"),
    ("256x256 batch 32 stage 3", "bfloat16", "forward"),
}


def cases(device: str) -> list[Case]:
    return image_cases(device, _HEADLINE, _GPU)


def test_sar_conv2d(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
