"""Where a training step spends its time, operator by operator.

``python -m benchmarks.training.step_profile [--backend reference] [--rows 40]``

Processor time of each operator call (of several steps the second lowest, so that a busy machine
shows less), summed by phase, operator and shapes. One thread, the allocator tuned as for the
benchmarks.
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import allocator
from benchmarks.subject import Inputs
from benchmarks.training import bench_training_step
from clipweather_fast import use_backend

STEPS = 7

#: Phase, operator, shapes.
Key = tuple[str, str, str]


class Recorder(TorchDispatchMode):
    """Notes what every operator call took."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = ""
        self.calls: list[tuple[Key, float]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        start = time.thread_time()
        result = function(*args, **(kwargs or {}))
        taken = time.thread_time() - start
        shapes = " ".join(str(tuple(a.shape)) for a in args if isinstance(a, torch.Tensor))
        self.calls.append(((self.phase, str(function), shapes), taken))
        return result


def step(inputs: Inputs) -> list[tuple[Key, float]]:
    """One step's operator calls with their seconds."""
    with Recorder() as recorder, torch.enable_grad():
        recorder.phase = "forward"
        inputs["optimizer"].zero_grad()
        loss = bench_training_step._loss(inputs)
        recorder.phase = "backward"
        loss.backward()
        recorder.phase = "optimizer"
        inputs["optimizer"].step()
    return recorder.calls


def summary(steps: list[list[tuple[Key, float]]], length: int) -> list[tuple[float, int, Key]]:
    """Seconds and calls by the first ``length`` parts of the key, the slowest first."""
    seconds: dict[Key, float] = defaultdict(float)
    calls: dict[Key, int] = defaultdict(int)
    for same in zip(*steps, strict=True):
        key: Any = same[0][0][:length]
        seconds[key] += sorted(taken for _, taken in same)[1]
        calls[key] += 1
    return sorted(((seconds[key], calls[key], key) for key in seconds), reverse=True)


def lines(steps: list[list[tuple[Key, float]]], rows: int) -> Iterator[str]:
    """What is printed."""
    for length in (1, 2, 3):
        for seconds, calls, key in summary(steps, length)[:rows]:
            yield f"{1e3 * seconds:8.2f} ms {calls:5d} calls  " + "  ".join(key)
        yield ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training.step_profile")
    parser.add_argument("--network", default="clipweather_base")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--rows", type=int, default=30)
    options = parser.parse_args()
    allocator.tune()
    torch.set_num_threads(1)
    size = bench_training_step.CropSize("", options.network, 4, 128)
    generator = torch.Generator().manual_seed(0)
    inputs = bench_training_step._inputs(size, torch.float32, "cpu", "contiguous", generator)
    with use_backend(options.backend):
        step(inputs)
        steps = [step(inputs) for _ in range(STEPS)]
    print("\n".join(lines(steps, options.rows)))


if __name__ == "__main__":
    main()
