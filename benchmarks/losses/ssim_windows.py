"""The SSIM loss by its CPU kernel, and by PyTorch: as a product with a band matrix, or convolved.

    python -m benchmarks.losses.ssim_windows [--threads N]

Forward and backward of ``ssim_loss`` of four pictures, each way in turn after both gave the same
loss and gradient. Writes ``ssim_windows.json`` beside the machine's results.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from benchmarks import allocator
from benchmarks.correctness import WrongResult
from benchmarks.figures import write_figures
from benchmarks.results import ROOT
from clipweather_fast.losses import ssim_loss
from clipweather_fast.ops import use_backend
from clipweather_fast.speed.clock import finisher, in_turn, once

__all__ = ["main", "row"]

# The package's attribute of this name is the function.
MODULE = importlib.import_module("clipweather_fast.losses.ssim")
PICTURES = 4
SIDES = (128, 256, 512, 720, 1024)
#: Largest difference of the gradients, relative to the largest of them: sums in another order.
TOLERANCE = 1e-3
#: For the rounds of one side.
SECONDS = 8.0


def step(backend: str, longest_matrix: int, y: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """The loss and its gradient; PyTorch's with matrices up to a side."""
    leaf = y.detach().requires_grad_()
    with mock.patch.object(MODULE, "LONGEST_MATRIX", longest_matrix), use_backend(backend):
        loss = ssim_loss(leaf, truth)
        (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def row(side: int, seconds: float = SECONDS) -> dict[str, Any]:
    """Times of all ways for square pictures of one side.

    Raises:
        WrongResult: they do not give the same.
    """
    generator = torch.Generator().manual_seed(side)
    truth = torch.rand(PICTURES, 3, side, side, generator=generator)
    y = (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    ways = {"kernel": ("cpu", side), "matrix": ("reference", side), "convolution": ("reference", 0)}
    calls: dict[str, Callable[[], Any]] = {
        name: partial(step, *way, y, truth) for name, way in ways.items()
    }
    *found, (other, expected) = (call() for call in calls.values())
    apart = 0.0
    for name, (loss, gradient) in zip(ways, found, strict=False):
        distance = float((gradient - expected).abs().max() / expected.abs().max())
        if not (torch.allclose(loss, other, rtol=1e-4) and distance <= TOLERANCE):
            raise WrongResult(f"ssim_windows: at {side} the {name} is {distance:.2g} off")
        apart = max(apart, distance)
    finish = finisher(torch.device("cpu"))
    first = {name: once(call, finish) for name, call in calls.items()}
    times = in_turn(calls, first, limit=seconds, finish=finish)
    medians = {f"{name}_s": it.median for name, it in times.items()}
    return {
        **medians,
        "ratio": medians["convolution_s"] / medians["matrix_s"],
        "of_kernel": medians["matrix_s"] / medians["kernel_s"],
        "rounds": times["matrix"].rounds,
        "gradients_apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    allocator.tune()
    found = {}
    for side in SIDES:
        found[str(side)] = row(side)
        ratios = found[str(side)]
        print(
            f"{side}: a convolution takes {ratios['ratio']:.1f} times the matrix's time, "
            f"the matrix {ratios['of_kernel']:.1f} times the kernel's",
            flush=True,
        )
    facts = {"pictures": PICTURES, "threads": options.threads, "clock": "wall"}
    path = write_figures("ssim_windows", found, allocator=allocator.describe(), **facts)
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
