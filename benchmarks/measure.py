"""Times and memory of contestants on rotating inputs."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from benchmarks.roofs import synchronised
from benchmarks.subject import Case, Contestant, Inputs, Subject, leaf

__all__ = ["Lane", "Pool", "graph_seconds", "memory", "summary"]

_MAX_SETS = 128


class Pool:
    """Sets of inputs per memory format, together twice as large as the last-level cache.

    All contestants of a format draw from one rotation: nobody finds its inputs still warm, neither
    from its own last turn nor from the contestant before it.
    """

    def __init__(self, subject: Subject, case: Case, device: str, cache_bytes: int) -> None:
        self._subject, self._case, self._device = subject, case, device
        self._sets: dict[str, list[Inputs]] = {}
        self._turns: dict[str, int] = {}
        least = max(1, subject.work(case.size, case.dtype, "forward").bytes)
        self.count = min(_MAX_SETS, max(2, -(-2 * cache_bytes // least)))

    def sets(self, layout: str) -> list[Inputs]:
        """The sets of one memory format; parameters are the same tensors in all of them."""
        if layout not in self._sets:
            self._sets[layout] = self._make(layout)
        return self._sets[layout]

    def next(self, layout: str) -> Inputs:
        """The set whose turn it is."""
        turn = self._turns.get(layout, 0)
        self._turns[layout] = turn + 1
        return self.sets(layout)[turn % self.count]

    def _make(self, layout: str) -> list[Inputs]:
        subject, case = self._subject, self._case
        generator = torch.Generator().manual_seed(1)
        made: list[Inputs] = []
        for _ in range(self.count):
            fresh = subject.inputs(case.size, case.dtype, self._device, layout, generator)
            if made:
                fresh |= {k: v for k, v in made[0].items() if k not in subject.rotating}
            made.append(fresh)
        if case.direction == "forward":
            return made
        for inputs in made:
            for name in subject.differentiable:
                leaf(inputs, name).requires_grad_()
        return made


class Lane:
    """One contestant with its place in the rotation."""

    def __init__(self, contestant: Contestant, subject: Subject, case: Case, pool: Pool) -> None:
        self.contestant, self.direction = contestant, case.direction
        self._names = subject.differentiable
        self._parameters = [name for name in self._names if name not in subject.rotating]
        self._pool = pool
        self._direction_of_y: Tensor | None = None

    def prepare(self) -> Callable[[], Any]:
        """The next call to be timed; everything that is not part of it is done here."""
        if torch.get_num_threads() != self.contestant.threads:
            torch.set_num_threads(self.contestant.threads)
        return self.call_on(self._pool.next(self.contestant.layout))

    def call_on(self, inputs: Inputs) -> Callable[[], Any]:
        """The timed call on one set of inputs."""
        call, leaves = self.contestant.call, [leaf(inputs, name) for name in self._names]
        if self.direction == "forward":
            return lambda: _without_grad(call, inputs)
        if self.direction == "backward":
            y = call(inputs)
            return lambda: torch.autograd.grad(y, leaves, self._gradient_of(y))
        return lambda: self._forward_backward(call, inputs, leaves)

    def _forward_backward(self, call: Any, inputs: Inputs, leaves: list[Tensor]) -> Any:
        y = call(inputs)
        return torch.autograd.grad(y, leaves, self._gradient_of(y))

    def _gradient_of(self, y: Tensor) -> Tensor:
        """A fixed gradient of the output, in the output's own memory format."""
        if self._direction_of_y is None:
            self._direction_of_y = torch.randn_like(y)
        return self._direction_of_y

    def warm(self, times: int) -> None:
        """Calls that settle compilation, workspaces and the gradient of the output."""
        for _ in range(times):
            self.prepare()()

    def first_set(self) -> tuple[Inputs, set[int]]:
        """A set of inputs, and the addresses of its parameters."""
        inputs = self._pool.sets(self.contestant.layout)[0]
        return inputs, {
            leaf(inputs, name).untyped_storage().data_ptr() for name in self._parameters
        }

    def all_sets(self) -> list[Callable[[], Any]]:
        return [self.call_on(inputs) for inputs in self._pool.sets(self.contestant.layout)]


def _without_grad(call: Any, inputs: Inputs) -> Any:
    with torch.no_grad():
        return call(inputs)


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and spread of samples."""
    ordered = sorted(seconds)
    last = len(ordered) - 1
    return {
        "median_s": statistics.median(ordered),
        "p20_s": ordered[round(0.2 * last)],
        "p80_s": ordered[round(0.8 * last)],
        "rounds": len(ordered),
    }


def memory(lane: Lane, device: str) -> dict[str, int]:
    """Bytes kept for the backward pass, and the most bytes allocated during the call."""
    found: dict[str, int] = {}
    if lane.direction == "both":
        found["saved_bytes"] = _saved_bytes(lane)
    call = lane.prepare()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    else:
        found["peak_bytes"] = _peak_bytes_cpu(call)
    return found


def _saved_bytes(lane: Lane) -> int:
    """Bytes of the distinct buffers autograd keeps, parameters not counted."""
    kept: dict[int, int] = {}
    inputs, parameters = lane.first_set()

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        y = lane.contestant.call(inputs)
    del y
    return sum(size for address, size in kept.items() if address not in parameters)


def _peak_bytes_cpu(call: Callable[[], Any]) -> int:
    """The most bytes PyTorch's CPU allocator held at once during the call."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        call()
    events = profile.profiler.kineto_results.events()
    held = most = 0
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    for _, change in changes:
        held += change
        most = max(most, held)
    return most


def graph_seconds(lane: Lane) -> float:
    """Seconds per call inside a CUDA graph of one call per input set: no launch or host cost."""
    calls = lane.all_sets()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    graph.replay()
    times = []
    for _ in range(7):
        start = synchronised()
        graph.replay()
        times.append(synchronised() - start)
    return statistics.median(times) / len(calls)
