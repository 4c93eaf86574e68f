"""What a run will need: parameters, memory and time, found by trying a step."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clipweather_fast.training.adam import Adam
from clipweather_fast.training.config import TrainingConfig
from clipweather_fast.training.processes import Processes
from clipweather_fast.training.task import Progress, Task

__all__ = ["Estimate", "estimate"]

#: Pictures in a micro-batch that a processor tries.
MOST_TRIED = 2


@dataclass(frozen=True)
class Estimate:
    """Counts, bytes, and the time of a step.

    Attributes:
        trained: parameters that learn; frozen: of the networks that are only asked, by name.
        weights, gradients, optimizer, average, frozen_weights: bytes, as they are kept all the
            time.
        kept: bytes that a micro-batch keeps for its gradient, counted during a forward pass.
        seconds: of a step of the optimizer, without the reading of pictures.
        pictures: in a step, over all processes.
        tried: pictures in the micro-batch that was tried; a processor's are few, and what depends
            on their number was multiplied.
    """

    trained: int
    frozen: dict[str, int]
    weights: int
    gradients: int
    optimizer: int
    average: int
    frozen_weights: int
    kept: int
    seconds: float
    pictures: int
    tried: int

    def __str__(self) -> str:
        counts = [f"trained {self.trained:,}"]
        counts += [f"{name} {count:,} (frozen)" for name, count in self.frozen.items()]
        named = {
            "weights": self.weights,
            "gradients": self.gradients,
            "optimizer": self.optimizer,
            "average": self.average,
            "frozen networks": self.frozen_weights,
            "kept for the gradient": self.kept,
        }
        memory = ", ".join(f"{name} {_mib(size)}" for name, size in named.items())
        return "\n".join(
            [
                f"parameters: {', '.join(counts)}",
                f"memory: {_mib(sum(named.values()))} ({memory})",
                f"time: {self.seconds:.3g} s per step of {self.pictures} pictures "
                f"({self.pictures / self.seconds:.3g} pictures/s), reading them not counted; "
                f"tried with {self.tried}",
            ]
        )


def estimate(task: Task, config: TrainingConfig, steps: int = 2) -> Estimate:
    """Trains the task's student for a few steps on noise.

    The student is changed by it. The time is the shortest of the steps after the first, times the
    micro-batches of a step.
    """
    processes = Processes(config.run)
    for module in task.frozen.values():
        module.to(processes.device)
    task.student = student = processes.wrapped(task.student).train()
    parameters = [p for p in student.parameters() if p.requires_grad]
    optimizer = Adam(parameters, lr=1e-9, fused=not processes.sharded)
    micro = max(1, config.data.batch // (config.run.accumulate * processes.world))
    tried = micro if processes.device.type == "cuda" else min(micro, MOST_TRIED)
    batch = task.example(tried)
    # The last epoch has every term.
    progress = Progress(0, config.run.epochs, config.run.epochs - 1, config.run.epochs)
    seconds: list[float] = []
    kept = 0
    for i in range(1 + steps):
        _synchronise(processes.device)
        began = time.perf_counter()
        if i == 0:
            with _Counted(parameters) as counted:
                parts = task.parts(batch, progress)
            kept = counted.size
        else:
            parts = task.parts(batch, progress)
        processes.accelerator.backward(torch.stack(list(parts.values())).sum())
        _synchronise(processes.device)
        halfway = time.perf_counter()
        optimizer.step()
        optimizer.zero_grad()
        _synchronise(processes.device)
        ended = time.perf_counter()
        passes = config.run.accumulate * micro / tried
        seconds.append((halfway - began) * passes + ended - halfway)
    frozen = {name: _size(module) for name, module in task.frozen.items()}
    weights = sum(p.numel() * p.element_size() for p in student.parameters())
    learnt = sum(p.numel() * p.element_size() for p in parameters)
    return Estimate(
        trained=sum(p.numel() for p in parameters),
        frozen={name: count for name, (count, _) in frozen.items()},
        weights=weights,
        gradients=learnt,
        optimizer=2 * learnt,
        average=weights,
        frozen_weights=sum(size for _, size in frozen.values()),
        kept=kept * micro // tried,
        seconds=min(seconds[1:]),
        pictures=config.data.batch,
        tried=tried,
    )


class _Counted:
    """Counts the bytes that a forward pass keeps for the gradient, parameters not among them."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self._own = {p.untyped_storage().data_ptr() for p in parameters}
        self._seen: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda kept: kept)

    @property
    def size(self) -> int:
        return sum(self._seen.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._own:
            self._seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    def __enter__(self) -> _Counted:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._hooks.__exit__(*error)


def _size(module: nn.Module) -> tuple[int, int]:
    """Parameters and their bytes."""
    parameters = list(module.parameters())
    return (
        sum(p.numel() for p in parameters),
        sum(p.numel() * p.element_size() for p in parameters),
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:,.1f} MiB"


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
