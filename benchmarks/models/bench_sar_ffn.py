"""SARFFN whole: Linear, the fused stretch, Linear; against the same module on plain PyTorch."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.models.tokens import TokenSize, random_tokens, token_cases
from benchmarks.ops import bench_sar_mixer
from benchmarks.shapes import ImageSize
from benchmarks.subject import Case, Inputs, Subject, Work
from clipweather_fast import ops, use_backend
from clipweather_fast.modules import SARFFN

_KERNELS = 3


def _inputs(
    size: TokenSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    module = SARFFN(size.dim, num_kernels=_KERNELS)
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


def _hidden(size: TokenSize) -> ImageSize:
    return ImageSize(size.name, size.n, 2 * size.dim, size.h, size.w, _KERNELS)


def _explain(inputs: Inputs) -> dict[str, str]:
    x = inputs["x"]
    size = TokenSize("", x.shape[0], inputs["H"], inputs["W"], x.shape[2], 1, 1)
    between = bench_sar_mixer.SUBJECT.inputs(
        _hidden(size), x.dtype, x.device.type, "channels_last", torch.Generator().manual_seed(0)
    )
    return ops.explain(ops.sar_mixer, **between)


def _work(size: TokenSize, dtype: torch.dtype, direction: str) -> Work:
    """Two Linear layers (a backward pass is twice their forward) and the stretch between them."""
    between = bench_sar_mixer.SUBJECT.work(_hidden(size), dtype, direction)
    times = {"forward": 1, "backward": 2, "both": 3}[direction]
    linear = 2 * size.tokens * size.dim * 2 * size.dim
    outside = size.tokens * size.dim * dtype.itemsize * (2 * times)
    return Work(between.bytes + outside, between.fma + times * linear, between.extra)


SUBJECT = Subject(
    topic="sar_ffn",
    inputs=_inputs,
    ours=_ours,
    reference=_plain,
    differentiable=(
        "x",
        *(f"module.{name}" for name, _ in SARFFN(2).named_parameters()),
    ),
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
    ("1080p stage 1", "forward"): "headline",
}


def cases(device: str) -> list[Case]:
    return token_cases(device, _HEADLINE)


def test_sar_ffn(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
