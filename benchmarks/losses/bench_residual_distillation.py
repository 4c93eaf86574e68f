"""Soft residual distillation of ``clipweather_base``'s maps, against its equations as they read.

The opponents pool, normalise and compare whole maps with PyTorch's own functions. In forward rows
``teacher`` is what the features cost: RN50x4's trunk on the pictures with weather and the clean
ones in one batch. It computes something else, so its values are not compared.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.losses.naive_distillation import naive_distillation
from benchmarks.subject import Case, Contestant, Inputs, Subject, Work, in_layout
from clipweather_fast import create_model
from clipweather_fast.losses import residual_distillation
from clipweather_fast.models._encoder import ResidualPlace

#: Channels and strides of RN50x4's stem, layer2, layer3 and layer4.
_TEACHER = ((80, 4), (640, 8), (1280, 16), (2560, 32))


@dataclass(frozen=True)
class CropSize:
    """A batch of square crops of a training step."""

    name: str
    n: int
    side: int


@cache
def _places() -> tuple[ResidualPlace, ...]:
    with torch.device("meta"):
        return create_model("clipweather_base").residual_places()


_RESIDUALS = tuple(f"residual{i}" for i in range(11))
_WEATHER = tuple(f"weather{i}" for i in range(4))
_CLEAN = tuple(f"clean{i}" for i in range(4))


def _inputs(
    size: CropSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    def drawn(channels: int, stride: int) -> Tensor:
        shape = (size.n, channels, size.side // stride, size.side // stride)
        return in_layout(torch.randn(shape, generator=generator).to(device, dtype), layout)

    made = [(p.channels, p.stride) for p in _places()] + 2 * list(_TEACHER)
    names = (*_RESIDUALS, *_WEATHER, *_CLEAN)
    return {name: drawn(*shape) for name, shape in zip(names, made, strict=True)}


def _arguments(inputs: Inputs) -> tuple[Any, ...]:
    groups = ([inputs[name] for name in names] for names in (_RESIDUALS, _WEATHER, _CLEAN))
    residuals, weather, clean = groups
    return residuals, _places(), weather, clean


def _ours(inputs: Inputs, backend: str | None) -> Tensor:
    return residual_distillation(*_arguments(inputs))


def _naive(inputs: Inputs) -> Tensor:
    return naive_distillation(*_arguments(inputs))


@cache
def _teacher(device: str) -> nn.Module:
    from clipweather_fast.clip import Teacher

    return Teacher("random").to(device, memory_format=torch.channels_last)


def _teachers_features(inputs: Inputs) -> Tensor:
    stem = inputs["weather0"]
    n, side = 2 * stem.shape[0], 4 * stem.shape[2]
    image = torch.full((n, 3, side, side), 0.5, device=stem.device)
    maps: list[Tensor] = _teacher(stem.device.type)(image)
    return maps[-1]


def _unlike(case: Case, device: str) -> list[Contestant]:
    if case.direction != "forward":  # nothing reaches the teacher backwards
        return []
    threads = torch.get_num_threads()
    return [Contestant("teacher", _teachers_features, "channels_last", threads)]


def _work(size: CropSize, dtype: torch.dtype, direction: str) -> Work:
    """Everything is read once; backward reads the residual maps again and writes their gradient."""
    pixels = size.n * size.side * size.side
    residuals = sum(pixels // p.stride**2 * p.channels for p in _places())
    features = 2 * sum(pixels // stride**2 * channels for channels, stride in _TEACHER)
    values = {
        "forward": residuals + features,
        "backward": 2 * residuals,
        "both": 3 * residuals + features,
    }
    return Work(values[direction] * dtype.itemsize, 0)


def _gate_size(size: CropSize) -> CropSize:
    """Few values: where student and target are equal but for rounding, the sign may be either."""
    return CropSize(size.name, 1, 64)


SUBJECT = Subject(
    topic="residual_distillation",
    inputs=_inputs,
    ours=_ours,
    reference=_naive,
    differentiable=_RESIDUALS,
    rotating=(*_RESIDUALS, *_WEATHER, *_CLEAN),
    work=_work,
    explain=lambda inputs: {"in pieces": "yes (chosen)", "reference": "yes"},
    unlike=_unlike,
    gate_size=_gate_size,
)


def cases(device: str) -> list[Case]:
    shapes = [
        (CropSize("64x64 batch 2", 2, 64), "quick", ("both",)),
        (CropSize("256x256 batch 4", 4, 256), "headline", ("forward", "both")),
        (CropSize("256x256 batch 32", 32, 256), "full", ("forward", "both")),
    ]
    return [
        Case(size, torch.float32, direction, scope)
        for size, scope, directions in shapes
        for direction in directions
    ]


def test_residual_distillation(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
