"""What every test shares: seeds, NaN in fresh memory, the axes of the battery, the final count."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

# cuBLAS repeats its results only with a fixed workspace; it reads this when it starts.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if "PYTEST_XDIST_WORKER" in os.environ:
    # OpenMP reads this when it starts: beside other workers, threads that wait must not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hypothesis
import numpy as np
import pytest
import torch

pytest.register_assert_rewrite(
    "call",
    "choice_tests",
    "gradient_tests",
    "integration_tests",
    "op_tests",
    "tolerance",
    "training_runs",
    "value_tests",
)

from clipweather_fast.models import _frozen
from clipweather_fast.ops import BACKENDS, _native
from clipweather_fast.ops._native import CPU_ISAS, core, why_not_loaded
from clipweather_fast.ops._triton import interpreted

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell that starts the tests in the background has them ignore Ctrl-C, and with them the
    # commands that some tests interrupt.
    signal.signal(signal.SIGINT, signal.default_int_handler)

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
LOW_DTYPES = (torch.bfloat16, torch.float16)

hypothesis.settings.register_profile(
    "clipweather", deadline=None, derandomize=True, database=None, max_examples=15
)
hypothesis.settings.load_profile("clipweather")


if interpreted():
    from interpreter import round_bfloat16_to_nearest

    round_bfloat16_to_nearest()


@pytest.fixture(autouse=True)
def as_where_bfloat16_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms multiply in bfloat16 where they can, whether or not that is faster here."""
    if _frozen._why_not(torch.bfloat16) is None:
        monkeypatch.setattr(_native, "bfloat16_pays", lambda: True)


@pytest.fixture
def default_dtype() -> Iterator[Callable[[torch.dtype], None]]:
    """Sets the dtype that tensors have where none is named, until the test ends."""
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


def home(backend: str) -> str:
    """The device on which a backend is tested."""
    if backend == "cuda" or (backend == "triton" and not interpreted()):
        return "cuda" if torch.cuda.is_available() else "cpu"
    return "cpu"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("clipweather")
    group.addoption(
        "--backend", choices=BACKENDS, help="test this backend only, and nothing that names none"
    )
    group.addoption(
        "--brief", action="store_true", help="run the battery on its representative cases only"
    )
    group.addoption("--large", action="store_true", help="also run tests that need much memory")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "large: needs many GiB of memory; run with --large")
    config.addinivalue_line("markers", "full: left out of --brief")


def pytest_report_header() -> str:
    missing = why_not_loaded()
    kernels = missing if missing else CPU_ISAS[core().cpu_isa]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return f"torch {torch.__version__}, CPU kernels: {kernels}, GPU: {gpu}"


def _axes(metafunc: pytest.Metafunc) -> dict[str, Any]:
    """Values for the battery's fixtures, by name."""
    only, brief = metafunc.config.getoption("--backend"), metafunc.config.getoption("--brief")
    backends = [only] if only else list(BACKENDS)
    few = list(metafunc.cls.representative)
    # A float64 path exists on these alone.
    doubles = [b for b in ("cpu", "reference") if b in backends]
    return {
        "backend": backends,
        "double_backend": doubles,
        "only_cpu": ["cpu"] if "cpu" in backends else [],
        "dtype": DTYPES,
        "low_dtype": LOW_DTYPES,
        "case": few if brief else list(metafunc.cls.cases),
        "few": few,
        "tiny": list(metafunc.cls.tiny),
        "bad": list(metafunc.cls.bad),
    }


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if metafunc.cls is None or not hasattr(metafunc.cls, "representative"):
        return
    for name, values in _axes(metafunc).items():
        if name in metafunc.fixturenames:
            ids = [str(value).removeprefix("torch.") for value in values]
            metafunc.parametrize(name, values, ids=ids)


def _backend_of(item: pytest.Item) -> str | None:
    params = item.callspec.params if hasattr(item, "callspec") else {}
    for name in ("backend", "double_backend", "only_cpu"):
        if name in params:
            return str(params[name])
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    kept, dropped = [], []
    for item in items:
        backend = _backend_of(item)
        if backend is not None:
            item.user_properties.append(("backend", backend))
        if backend == "triton" and interpreted():
            # NumPy, which computes here, warns of every NaN; a GPU does not.
            item.add_marker(pytest.mark.filterwarnings("ignore::RuntimeWarning"))
            if "several_python_threads" in item.name:
                words = "Triton's interpreter keeps its state in globals, so it runs in one thread"
                item.add_marker(pytest.mark.skip(reason=words))
        unnamed = config.getoption("--backend") and backend is None
        full = config.getoption("--brief") and item.get_closest_marker("full")
        (dropped if unnamed or full else kept).append(item)
        if item.get_closest_marker("large") and not config.getoption("--large"):
            item.add_marker(pytest.mark.skip(reason="needs much memory; run with --large"))
    items[:] = kept
    config.hook.pytest_deselected(items=dropped)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """A line per backend: how many of its tests passed, failed and were skipped."""
    counts: Counter[tuple[str, str]] = Counter()
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            backend = dict(getattr(report, "user_properties", ())).get("backend")
            if backend is not None:
                counts[backend, outcome] += 1
    if not counts:
        return
    terminalreporter.section("tests per backend")
    for backend in BACKENDS:
        words = [
            f"{counts[backend, outcome]} {outcome}"
            for outcome in ("passed", "failed", "error", "skipped")
            if counts[backend, outcome]
        ]
        if words:
            terminalreporter.line(f"{backend}: {', '.join(words)}")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> str:
    return home(request.getfixturevalue("backend"))


@pytest.fixture(autouse=True)
def repeatable() -> Iterator[None]:
    """Fixed seeds; deterministic algorithms, which also fill fresh memory with NaN."""
    torch.manual_seed(0)
    np.random.seed(0)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def no_backend_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller's environment names no backend for the tests."""
    monkeypatch.delenv("CLIPWEATHER_BACKEND", raising=False)
