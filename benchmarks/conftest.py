"""Options of `pytest benchmarks`, the fixture that measures a case, and the writing of results."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import allocator, machine, roofs
from benchmarks.contest import Contest, Settings
from benchmarks.results import RESULTS, Store
from benchmarks.subject import SCOPES

_CACHE_BYTES = 32 << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clipweather benchmarks")
    group.addoption("--quick", action="store_true", help="a few small cases in seconds; no results")
    group.addoption("--full", action="store_true", help="every shape, not only the headline's")
    group.addoption("--bench-device", choices=("cpu", "cuda"), default="cpu")
    group.addoption(
        "--bench-allocator",
        choices=("tuned", "default"),
        default="tuned",
        help="default: glibc as it comes, for a second look; topics get the suffix _default_malloc",
    )
    group.addoption("--bench-threads", type=int, default=1, help="threads of every contestant")
    group.addoption("--bench-seconds", type=float, help="time for one case's rounds")
    group.addoption(
        "--bench-clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: this process's processor time, for one thread on a machine others use as well",
    )
    group.addoption("--no-compile", action="store_true", help="leave torch.compile out")
    group.addoption(
        "--bench-minutes",
        type=float,
        default=38.0,
        help="for all cases of whole networks; when they are slow or few, each gets less or more",
    )
    group.addoption("--bench-results", type=Path, default=RESULTS, help="where complete runs go")


def _scope(config: pytest.Config) -> str:
    return "quick" if config.option.quick else "full" if config.option.full else "headline"


class Run:
    """The state of one session: settings, contest, store, and how far each topic is."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        self.suffix = "" if option.bench_allocator == "tuned" else "_default_malloc"
        torch.set_num_threads(option.bench_threads)
        scope, device = _scope(config), option.bench_device
        quick = scope == "quick"
        heap = {"heap": 1 << 28} if quick or device == "cuda" else {}
        if option.bench_allocator == "tuned":
            allocator.tune(**heap)
        facts = machine.facts(device)
        self.settings = Settings(
            device=device,
            scope=scope,
            seconds=option.bench_seconds or (0.1 if quick else 1.0),
            rounds=(2, 5) if quick else (5, 100),
            compile=not (option.no_compile or quick),
            threads=option.bench_threads,
            cpu_clock=option.bench_clock == "cpu",
            cache_bytes=max(_CACHE_BYTES, facts.get("l2_bytes", 0)),
        )
        self.contest = Contest(self.settings)
        self.expected: dict[str, int] = {}
        self.failed: set[str] = set()
        self.limits: dict[str, float] = {}
        self._end = time.monotonic() + 60 * option.bench_minutes
        self.written: list[Path] = []
        self._results: Path = option.bench_results
        self._facts = facts
        self._store: Store | None = None

    @property
    def store(self) -> Store:
        """Made with the first result, because its header holds the roofs measured in this run."""
        if self._store is None:
            settings = self.settings
            header: dict[str, Any] = {
                "machine": self._facts,
                "versions": machine.versions(),
                **machine.commit(),
                "device": settings.device,
                "scope": settings.scope,
                "threads": settings.threads,
                "clock": "processor time" if settings.cpu_clock else "wall",
                "allocator": allocator.describe(),
                "seconds_per_case": settings.seconds,
                "roofs": roofs.measured(settings.device),
            }
            self._store = Store(machine.name(settings.device), header, self._results)
        return self._store

    def pace(self, case: Any) -> float:
        """The part of its limit that a case may use, so that all that follow have theirs too."""
        from benchmarks.models.picture_contest import fitting_pace

        wanted = sum(self.limits.values())
        del self.limits[case.name]
        return fitting_pace(self._end - time.monotonic(), wanted, self.settings.device)

    def record(self, topic: str, case: dict[str, Any]) -> None:
        """Keeps a case; the last one of a topic makes its file final."""
        self.store.add(topic, case)
        complete = self.store.count(topic) == self.expected[topic] and topic not in self.failed
        if complete and self.settings.scope != "quick":
            self.written.append(self.store.finish(topic))


_RUN = pytest.StashKey[Run]()


def _run(config: pytest.Config) -> Run:
    if _RUN not in config.stash:
        config.stash[_RUN] = Run(config)
    return config.stash[_RUN]


def pytest_configure(config: pytest.Config) -> None:
    # The compiler's trace of itself; pytest would print pages of it under a failure.
    logging.getLogger("torch.__trace").propagate = False


def _second_look(case: Any) -> bool:
    """What is claimed of the forward pass."""
    return (case.dtype, case.direction) == (torch.float32, "forward")


def _topic(module: Any, case: Any) -> str:
    """The result file of a case: one for a benchmark's file, unless it tells them apart."""
    return str(module.topic(case) if hasattr(module, "topic") else module.SUBJECT.topic)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Every benchmark file states its cases; the run takes those of its scope."""
    if "case" not in metafunc.fixturenames:
        return
    run = _run(metafunc.config)
    admitted = SCOPES[: SCOPES.index(run.settings.scope) + 1]
    cases = [c for c in metafunc.module.cases(run.settings.device) if c.scope in admitted]
    if run.suffix:
        cases = [c for c in cases if getattr(metafunc.module, "second_look", _second_look)(c)]
    for case in cases:
        topic = _topic(metafunc.module, case) + run.suffix
        run.expected[topic] = run.expected.get(topic, 0) + 1
    metafunc.parametrize("case", cases, ids=[case.name for case in cases])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            clock = _run(config).settings.clock
            item.add_marker(pytest.mark.benchmark(timer=clock, group=item.path.stem))
            # torch.compile and its compilers warn at their own discretion.
            item.add_marker(pytest.mark.filterwarnings("default"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is left after -k shares the time."""
    cases = [item.callspec.params.get("case") for item in session.items if _has_parameters(item)]
    limited = {case.name: case.limit for case in cases if hasattr(case, "limit")}
    if limited:
        _run(session.config).limits = limited


def _has_parameters(item: pytest.Item) -> bool:
    return hasattr(item, "callspec")


@pytest.fixture
def measured(benchmark: Any, request: pytest.FixtureRequest) -> Any:
    """``measured(subject, case)`` checks and times a case, and keeps its record."""
    run = _run(request.config)
    if run.settings.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def measure(subject: Any, case: Any) -> None:
        topic = subject.topic + run.suffix
        record = run.contest.run(benchmark, subject, case)
        benchmark.extra_info["error"] = record.get("error")
        if record:
            run.record(topic, record)

    return measure


@pytest.fixture
def pictured(request: pytest.FixtureRequest) -> Any:
    """``pictured(case)`` checks and times a whole network, and keeps its record."""
    from benchmarks.models import picture_contest
    from clipweather_fast.clip import EncoderUnavailable

    run = _run(request.config)
    if run.settings.device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")

    def measure(case: Any) -> None:
        sides = request.module.sides(case, run.settings.scope)
        sides = picture_contest.AS_PEOPLE_RUN if run.suffix else sides
        kept = tuple(s for s in sides if run.settings.compile or not s.startswith("compile"))
        limited, most = replace(case, sides=kept), run.settings.rounds[1]
        try:
            record = picture_contest.run(limited, run.settings.device, most, run.pace(case))
        except EncoderUnavailable as reason:
            pytest.skip(str(reason))
        run.record(_topic(request.module, case) + run.suffix, record)

    return measure


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    for path in _run(config).written:
        terminalreporter.write_line(f"complete: {path}")
