"""sar_mixer: everything between the two Linear layers of SARFFN."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.ops import bench_sar_conv2d, bench_sar_logits
from benchmarks.ops.sar_inputs import image, image_cases, mixed_kernels, predictor
from benchmarks.shapes import ImageSize
from benchmarks.subject import Case, Contestant, Inputs, Subject, Work
from clipweather_fast import ops
from clipweather_fast.ops.sar_mixer.reference import sar_mixer_reference

_PREDICTOR = ("depthwise_weight", "depthwise_bias", "pointwise_weight", "pointwise_bias")
_KERNELS = ("weight", "bias", "static_weight", "static_bias")


def _inputs(
    size: ImageSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    return {
        "z": image(size, size.c, dtype, device, layout, generator),
        **predictor(size, dtype, device, generator),
        **mixed_kernels(size, dtype, device, generator),
    }


def _ours(inputs: Inputs, backend: str | None) -> torch.Tensor:
    return ops.sar_mixer(**inputs, backend=backend)


def _reference(inputs: Inputs) -> torch.Tensor:
    return sar_mixer_reference(**inputs, gate="softmax")[0]


def _two_operators(inputs: Inputs) -> torch.Tensor:
    """The next smaller fusion: sar_logits, then sar_conv2d."""
    logits = ops.sar_logits(inputs["z"], *(inputs[name] for name in _PREDICTOR))
    kernels = {name: inputs[name] for name in _KERNELS}
    return ops.sar_conv2d(inputs["z"], logits, **kernels, activation="gelu")


def _explain(inputs: Inputs) -> dict[str, str]:
    return ops.explain(ops.sar_mixer, **inputs)


def _opponents(case: Case, device: str) -> list[Contestant]:
    return [Contestant("sar_logits + sar_conv2d", _two_operators)]


def _work(size: ImageSize, dtype: torch.dtype, direction: str) -> Work:
    """The work of both parts; the hidden image is read once and the maps stay inside."""
    parts = [of(size, dtype, direction) for of in (bench_sar_conv2d.work, bench_sar_logits.work)]
    passes = {"forward": 2, "backward": 3, "both": 5}[direction]
    return Work(
        passes * size.elements * dtype.itemsize,
        sum(part.fma for part in parts),
        sum(part.extra for part in parts),
    )


SUBJECT = Subject(
    topic="sar_mixer",
    inputs=_inputs,
    ours=_ours,
    reference=_reference,
    differentiable=("z", *_PREDICTOR, *_KERNELS),
    rotating=("z",),
    work=_work,
    explain=_explain,
    opponents=_opponents,
)

_HEADLINE = {
    ("256x256 stage 4", "float32", "both"): "quick",
    ("256x256 stage 1", "float32", "forward"): "headline",
    ("256x256 stage 2", "float32", "forward"): "headline",
    ("256x256 stage 1", "float32", "both"): "headline",
    ("256x256 stage 1", "bfloat16", "forward"): "headline",
    ("1080p stage 1", "float32", "forward"): "headline",
}

_GPU = {
    ("256x256 batch 32 stage 1", "float32", "forward"),
    ("256x256 batch 32 stage 1", "bfloat16", "forward"),
    ("256x256 batch 32 stage 1", "bfloat16", "both"),
}


def cases(device: str) -> list[Case]:
    return image_cases(device, _HEADLINE, _GPU)


def test_sar_mixer(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
