"""accelerate() on a network people have: timm's PVTv2, as it comes and with the fused blocks."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ops import bench_depthwise_conv2d
from benchmarks.shapes import ImageSize
from benchmarks.subject import Case, Inputs, Subject, Work
from clipweather_fast import accelerate, ops, use_backend


@dataclass(frozen=True)
class PictureSize:
    """A picture and the network it goes through."""

    name: str
    network: str
    n: int
    h: int
    w: int


def _network(name: str) -> nn.Module:
    import timm

    torch.manual_seed(0)
    network: nn.Module = timm.create_model(name, num_classes=0)
    return network.eval()


def _inputs(
    size: PictureSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    original = _network(size.network).to(device, dtype)
    module = copy.deepcopy(original)
    accelerate(module)
    x = torch.randn(size.n, 3, size.h, size.w, generator=generator).to(device, dtype)
    return {"module": module, "original": original, "x": x}


def _ours(inputs: Inputs, backend: str | None) -> Tensor:
    with use_backend(backend or "auto"):
        y: Tensor = inputs["module"](inputs["x"])
        return y


def _original(inputs: Inputs) -> Tensor:
    y: Tensor = inputs["original"](inputs["x"])
    return y


def _explain(inputs: Inputs) -> dict[str, str]:
    """Of the feed-forward blocks' operator, which every backend that is there can run."""
    x = inputs["x"]
    stage = ImageSize("", x.shape[0], 256, x.shape[2] // 4, x.shape[3] // 4)
    generator = torch.Generator().manual_seed(0)
    operands = bench_depthwise_conv2d.SUBJECT.inputs(
        stage, x.dtype, x.device.type, "channels_last", generator
    )
    return ops.explain(ops.depthwise_conv2d, **operands, activation="gelu")


def _work(size: PictureSize, dtype: torch.dtype, direction: str) -> Work:
    """The picture's bytes; a network's roof is not stated."""
    return Work(3 * size.n * size.h * size.w * dtype.itemsize, 0)


SUBJECT = Subject(
    topic="accelerate",
    inputs=_inputs,
    ours=_ours,
    reference=_original,
    differentiable=("x",),
    rotating=("x",),
    work=_work,
    explain=_explain,
    layouts=("contiguous",),
    matrix=True,
)


def cases(device: str) -> list[Case]:
    if importlib.util.find_spec("timm") is None:
        return []
    sizes = {
        "headline": PictureSize("pvt_v2_b1 256x256", "pvt_v2_b1", 1, 256, 256),
        "full": PictureSize("pvt_v2_b1 480x720", "pvt_v2_b1", 1, 480, 720),
    }
    return [
        # Compiling the network's backward pass takes minutes.
        Case(size, torch.float32, direction, scope if direction == "forward" else "full")
        for scope, size in sizes.items()
        for direction in ("forward", "both")
    ]


def test_accelerated_network(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
