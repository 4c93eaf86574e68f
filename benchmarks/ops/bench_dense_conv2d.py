"""dense_conv2d: the decoder's and the embeddings' convolutions, at a training step's sizes.

At batch 4 and 128² the deep layers see few pixels and have large weights. The reference is
PyTorch's convolution.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.ops.sar_inputs import parameter
from benchmarks.subject import Case, Inputs, Subject, Work
from clipweather_fast import ops
from clipweather_fast.ops.dense_conv2d.reference import dense_conv2d_reference


@dataclass(frozen=True)
class ConvolutionSize:
    """An image, the channels it gets, and the kernel: (k, stride, padding)."""

    name: str
    n: int
    c: int
    side: int
    out: int
    kernel: tuple[int, int, int]
    transposed: bool = False

    @property
    def options(self) -> dict[str, Any]:
        _, stride, padding = self.kernel
        return {"stride": stride, "padding": padding, "transposed": self.transposed}

    @property
    def out_side(self) -> int:
        k, stride, padding = self.kernel
        if self.transposed:
            return (self.side - 1) * stride + k - 2 * padding
        return (self.side + 2 * padding - k) // stride + 1


def _inputs(
    size: ConvolutionSize,
    dtype: torch.dtype,
    device: str,
    layout: str,
    generator: torch.Generator,
) -> Inputs:
    channels = (size.c, size.out) if size.transposed else (size.out, size.c)
    k = size.kernel[0]
    x = torch.randn(size.n, size.c, size.side, size.side, generator=generator).to(device, dtype)
    weight = parameter((*channels, k, k), dtype, device, generator)
    last = torch.channels_last  # as the networks keep their weights
    return {
        "size": size,
        "x": x.contiguous(memory_format=last) if layout == "channels_last" else x,
        "weight": weight.contiguous(memory_format=last),
        "bias": parameter((size.out,), dtype, device, generator),
    }


def _call(inputs: Inputs) -> tuple[Any, ...]:
    return inputs["x"], inputs["weight"], inputs["bias"]


def _ours(inputs: Inputs, backend: str | None) -> torch.Tensor:
    return ops.dense_conv2d(*_call(inputs), **inputs["size"].options, backend=backend)


def _reference(inputs: Inputs) -> torch.Tensor:
    return dense_conv2d_reference(*_call(inputs), **inputs["size"].options)


def _explain(inputs: Inputs) -> dict[str, str]:
    return ops.explain(ops.dense_conv2d, *_call(inputs), **inputs["size"].options)


def _work(size: ConvolutionSize, dtype: torch.dtype, direction: str) -> Work:
    """Plain sums of products, twice as many backward; Winograd needs 2.25 times fewer."""
    passes = {"forward": 1, "backward": 2, "both": 3}[direction]
    area = size.kernel[0] ** 2
    coarse = size.side if size.transposed else size.out_side
    pixels = size.side**2 * size.c + size.out_side**2 * size.out
    products = size.n * coarse**2 * area * size.c * size.out
    elements = size.n * pixels + area * size.c * size.out
    return Work(passes * elements * dtype.itemsize, passes * products)


SUBJECT = Subject(
    topic="dense_conv2d",
    inputs=_inputs,
    ours=_ours,
    reference=_reference,
    differentiable=("x", "weight", "bias"),
    rotating=("x", "weight"),
    work=_work,
    explain=_explain,
    matrix=True,
)

_RESIDUAL, _UP, _HALVING = (3, 1, 1), (4, 2, 1), (3, 2, 1)
_SIZES = {
    ConvolutionSize("stride 16 residual 3x3", 4, 320, 8, 320, _RESIDUAL): "quick",
    ConvolutionSize("stride 8 residual 3x3", 4, 128, 16, 128, _RESIDUAL): "headline",
    ConvolutionSize("stride 4 residual 3x3", 4, 64, 32, 64, _RESIDUAL): "headline",
    ConvolutionSize("stride 64 to 32 transposed 4x4", 4, 512, 2, 512, _UP, True): "headline",
    ConvolutionSize("stride 32 to 16 transposed 4x4", 4, 512, 4, 320, _UP, True): "headline",
    ConvolutionSize("stride 16 to 32 embedding 3x3", 4, 320, 8, 512, _HALVING): "headline",
    ConvolutionSize("stride 32 to 64 embedding 3x3", 4, 512, 4, 512, _HALVING): "headline",
}


def cases(device: str) -> list[Case]:
    if device != "cpu":  # there PyTorch's convolution is what runs
        return []
    return [
        Case(size, torch.float32, direction, scope)
        for size, scope in _SIZES.items()
        for direction in ("forward", "both")
    ]


def test_dense_conv2d(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
