"""Inputs of the spatially-adaptive operators, and the work that they share."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.shapes import ImageSize, hidden_sizes
from benchmarks.subject import DIRECTIONS, Case, Inputs, in_layout

__all__ = ["GPU_EXTRA", "image", "image_cases", "mixed_kernels", "parameter", "predictor"]

#: Instructions per element beside multiply-adds (conversions, addresses, GELU): an estimate.
GPU_EXTRA = 20
#: Batches per picture: one on the CPU; a GPU is only filled by more of the small picture.
_BATCHES = {
    "cpu": {"256x256": (1, 4), "480x720": (1,), "1080p": (1,)},
    "cuda": {"256x256": (1, 32), "480x720": (1,), "1080p": (1,)},
}


def _random(shape: tuple[int, ...], scale: float, generator: torch.Generator) -> Tensor:
    return torch.randn(shape, generator=generator) * scale


def image(
    size: ImageSize,
    channels: int,
    dtype: torch.dtype,
    device: str,
    layout: str,
    generator: torch.Generator,
) -> Tensor:
    """A random image of ``channels`` on the grid of ``size``."""
    shape = (size.n, channels, size.h, size.w)
    return in_layout(_random(shape, 1.0, generator).to(device, dtype), layout)


def parameter(
    shape: tuple[int, ...], dtype: torch.dtype, device: str, generator: torch.Generator
) -> Tensor:
    """A parameter in the dtype of the features, as in a network converted to it."""
    return _random(shape, 1 / 3, generator).to(device, dtype)


def mixed_kernels(
    size: ImageSize, dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """The K mixed kernels and the static one with their biases."""
    k, c = size.kernels, size.c
    shapes = {
        "weight": (k, c, 3, 3),
        "bias": (k, c),
        "static_weight": (c, 1, 3, 3),
        "static_bias": (c,),
    }
    return {name: parameter(s, dtype, device, generator) for name, s in shapes.items()}


def predictor(
    size: ImageSize, dtype: torch.dtype, device: str, generator: torch.Generator
) -> Inputs:
    """The weight-map predictor: depthwise 3×3, then 1×1 to K maps."""
    k, c = size.kernels, size.c
    pointwise = _random((k, c, 1, 1), c**-0.5, generator).to(device, dtype)
    return {
        "depthwise_weight": parameter((c, 1, 3, 3), dtype, device, generator),
        "depthwise_bias": parameter((c,), dtype, device, generator),
        "pointwise_weight": pointwise,
        "pointwise_bias": parameter((k,), dtype, device, generator),
    }


def image_cases(
    device: str, headline: dict[tuple[str, str, str], str], gpu: set[tuple[str, str, str]]
) -> list[Case]:
    """Every shape, dtype and direction, each in its scope.

    Keys are (shape name, dtype name, direction). ``headline`` maps those of a smaller scope on the
    CPU to ``"quick"`` or ``"headline"``; ``gpu`` are the headline of a GPU.
    """
    cases = []
    for size in hidden_sizes(_BATCHES[device]):
        for dtype in (torch.float32, torch.bfloat16):
            for direction in DIRECTIONS:
                key = (size.name, str(dtype).removeprefix("torch."), direction)
                chosen = headline.get(key, "full")
                if device == "cuda":
                    chosen = "headline" if key in gpu else "full"
                cases.append(Case(size, dtype, direction, chosen))
    return cases
