"""One case from the check of its values to its record: ours and the opponents, turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks import measure
from benchmarks.correctness import Truth, WrongResult, truth_of
from benchmarks.measure import Lane, Pool
from benchmarks.roofs import synchronised
from benchmarks.subject import Case, Contestant, Subject, Work, within

__all__ = ["Contest", "Settings"]

OURS = "ours"


@dataclass(frozen=True)
class Settings:
    """How a run measures: where, for how long, against whom."""

    device: str
    scope: str
    seconds: float
    rounds: tuple[int, int]
    compile: bool
    threads: int
    cpu_clock: bool
    cache_bytes: int

    @property
    def clock(self) -> Callable[[], float]:
        if self.cpu_clock:
            return time.process_time
        return synchronised if self.device == "cuda" else time.perf_counter


@dataclass
class Contest:
    """Runs cases; keeps the truth of the last one, because its directions share it."""

    settings: Settings
    _key: Any = None
    _truth: Truth | None = None
    _errors: dict[str, float] = field(default_factory=dict)

    def run(self, benchmark: Any, subject: Subject, case: Case) -> dict[str, Any]:
        """Checks, then measures one case and returns its record.

        Skips where only the reference can run the call, with every backend's reason.
        """
        device = self.settings.device
        truth = self._truth_for(subject, case)
        answers = subject.explain(truth.inputs)
        chosen = next(name for name, answer in answers.items() if answer.startswith("yes (chosen"))
        if not any(a.startswith("yes") for n, a in answers.items() if n != "reference"):
            pytest.skip("; ".join(f"{n}: {a}" for n, a in answers.items() if n != "reference"))
        contestants, refused = self._contestants(subject, case, answers, truth)
        pool = Pool(subject, case, device, self.settings.cache_bytes)
        lanes = [Lane(contestant, subject, case, pool) for contestant in contestants]
        samples = self._times(benchmark, lanes)
        if not samples:
            return {}
        found = {
            lane.contestant.name: {
                "layout": lane.contestant.layout,
                "threads": lane.contestant.threads,
                **measure.summary(samples[lane.contestant.name]),
                **measure.memory(lane, device),
                **self._graph(lane),
            }
            for lane in lanes
        }
        found[OURS]["backend"] = chosen
        return self._record(subject, case, found, refused)

    def _truth_for(self, subject: Subject, case: Case) -> Truth:
        key = (subject.topic, case.size, case.dtype)
        if self._key != key:
            self._truth, self._errors = None, {}
            self._truth, self._key = truth_of(subject, case, self.settings.device), key
        assert self._truth is not None
        return self._truth

    def _contestants(
        self, subject: Subject, case: Case, answers: dict[str, str], truth: Truth
    ) -> tuple[list[Contestant], dict[str, str]]:
        """Who takes part, ours last, and who was refused for wrong values, with the error."""
        layout, threads = subject.layouts[-1], subject.threads or self.settings.threads
        ours = Contestant(OURS, _named(subject, None), layout, threads)
        others = [
            Contestant(f"{name} backend", _named(subject, name), layout, threads)
            for name, answer in answers.items()
            if answer == "yes" and name != "reference"
        ]
        for contestant in (ours, *others):
            if contestant.name not in self._errors:
                error = truth.check(contestant.name, contestant.call)
                self._errors[contestant.name] = error
        accepted, refused = [], {}
        for contestant in (*self._plain(subject), *subject.opponents(case, self.settings.device)):
            try:
                truth.check_output(contestant.name, contestant.call)
                accepted.append(contestant)
            except (WrongResult, RuntimeError) as reason:
                refused[contestant.name] = str(reason).splitlines()[0]
        accepted += subject.unlike(case, self.settings.device)
        return [*accepted, *others, ours], refused

    def _plain(self, subject: Subject) -> list[Contestant]:
        """The reference as it is and compiled, in each memory format."""
        if not subject.plain:
            return []
        threads, eager = self.settings.threads, within(subject, subject.reference)
        found = [Contestant(f"eager {it}", eager, it, threads) for it in subject.layouts]
        if self.settings.compile:
            torch._dynamo.reset()
            for layout in subject.layouts:
                compiled = within(subject, torch.compile(subject.reference, dynamic=False))
                found.append(Contestant(f"compile {layout}", compiled, layout, threads))
        return found

    def _times(self, benchmark: Any, lanes: list[Lane]) -> dict[str, list[float]]:
        """Samples by contestant: each of them once in every round, so that whatever else the
        machine does meets all alike."""
        clock, (*opponents, ours) = self.settings.clock, lanes
        for lane in lanes:
            lane.warm(2)
        samples: dict[str, list[float]] = {lane.contestant.name: [] for lane in opponents}

        def once(lane: Lane) -> float:
            call = lane.prepare()
            start = clock()
            call()
            return clock() - start

        started = time.perf_counter()
        for lane in lanes:
            once(lane)
        one_round = time.perf_counter() - started
        least, most = self.settings.rounds
        rounds = min(most, max(least, int(self.settings.seconds / max(one_round, 1e-6))))

        def setup() -> tuple[tuple[Any], dict[str, Any]]:
            for lane in opponents:
                samples[lane.contestant.name].append(once(lane))
            return (ours.prepare(),), {}

        benchmark.pedantic(_call, setup=setup, rounds=rounds, iterations=1, warmup_rounds=0)
        if benchmark.stats is None:  # --benchmark-disable: values were checked, nothing is timed
            return {}
        return {**samples, ours.contestant.name: list(benchmark.stats.stats.data)}

    def _graph(self, lane: Lane) -> dict[str, Any]:
        """Device time per call, or why it cannot be captured; only on a GPU."""
        if self.settings.device != "cuda" or lane.direction == "backward":
            return {}
        try:
            return {"graph_s": measure.graph_seconds(lane)}
        except RuntimeError as reason:
            torch.cuda.synchronize()
            return {"graph_refused": str(reason).splitlines()[0][:200]}

    def _record(
        self, subject: Subject, case: Case, found: dict[str, Any], refused: dict[str, str]
    ) -> dict[str, Any]:
        work: Work = subject.work(case.size, case.dtype, case.direction)
        return {
            "name": case.name,
            "size": vars(case.size),
            "dtype": case.dtype_name,
            "direction": case.direction,
            "scope": case.scope,
            "layout": subject.layouts[-1],
            "matrix": subject.matrix,
            "bytes": work.bytes,
            "flops": 2 * work.fma,
            "instructions": work.fma + work.extra,
            "error": self._errors[OURS],
            "contestants": found,
            "refused": refused,
        }


def _named(subject: Subject, backend: str | None) -> Any:
    return lambda inputs: subject.ours(inputs, backend)


def _call(function: Callable[[], Any]) -> None:
    function()
