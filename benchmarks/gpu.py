"""`make gpu`: build, test, sanitize and benchmark on a machine with a GPU, in under nine minutes.

Needs Python, PyTorch, Triton, nvcc, CMake and ninja, and no network. Every phase has a time limit
and its log under ``build/gpu/``; a phase that fails or runs out of time does not stop the others,
and what was measured stays. The short table comes last.

    python -m benchmarks.gpu [--wheels DIR] [--output DIR] [--rehearse]

``--wheels`` installs the wheels of a folder for this run; ``--output`` packs logs and results into
one archive there; ``--rehearse`` runs the same phases on the CPU with tiny shapes.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.results import PARTIAL, RESULTS, ROOT, load_all, write_atomically

__all__ = ["main"]

LOGS = ROOT / "build" / "gpu"
#: Seconds for everything; the table and the archive take what is left to nine minutes.
DEADLINE = 520.0
#: Grace between asking a phase to stop (pytest then writes its summary) and ending it.
_GRACE = 15.0
#: `clipweather env` without typer, which such a machine may lack.
_ENVIRONMENT = "from clipweather_fast import installation as i; print(*i.report(), sep='\\n')"
#: Importable names, and what to install for them.
_PACKAGES = {
    "torch": "torch",
    "triton": "triton",
    "numpy": "numpy",
    "pybind11": "pybind11",
    "setuptools": "setuptools",
    "pytest": "pytest",
    "pytest_benchmark": "pytest-benchmark",
    "hypothesis": "hypothesis",
    "expecttest": "expecttest",
    "greenlet": "greenlet",
    "open_clip": "open_clip_torch",
    "timm": "timm",
    "transformers": "transformers",
}
_TOOLS = {"cmake": "cmake", "ninja": "ninja"}
#: In the order of what one wants to know first.
_BENCHMARKS = (
    "ops/bench_sar_conv2d.py",
    "ops/bench_reduced_kv_attention.py",
    "ops/bench_sar_mixer.py",
    "ops/bench_depthwise_conv2d.py",
    "ops/bench_sar_logits.py",
)


@dataclass(frozen=True)
class Phase:
    """One command, its time limit and what it adds to the environment."""

    name: str
    command: list[str]
    seconds: float
    environment: dict[str, str]


@dataclass(frozen=True)
class Outcome:
    """How a phase ended: ``passed``, ``failed (code)``, ``out of time`` or ``skipped: reason``."""

    name: str
    word: str
    seconds: float


def missing(rehearse: bool) -> list[str]:
    """Distributions that are needed and not there."""
    found = [wheel for module, wheel in _PACKAGES.items() if not importlib.util.find_spec(module)]
    found += [wheel for tool, wheel in _TOOLS.items() if not shutil.which(tool)]
    if not rehearse and not shutil.which("nvcc"):
        found.append("nvcc (CUDA toolkit; put it on PATH)")
    return found


def _architecture() -> str:
    """This GPU's compute capability as nvcc writes it, e.g. ``90``."""
    answer = subprocess.run(
        ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader", "-i", "0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return answer.stdout.strip().replace(".", "")


def phases(rehearse: bool) -> list[Phase]:
    """What is run, in order."""
    python = [sys.executable, "-u", "-m"]
    device, backends = ("cpu", ("cpu",)) if rehearse else ("cuda", ("cuda", "triton"))
    build = {"CLIPWEATHER_CUDA": "off"}
    if not rehearse:
        build = {"CLIPWEATHER_CUDA": "on", "CLIPWEATHER_CUDA_ARCHS": _architecture()}
    jobs = str(os.cpu_count() or 1)
    setup = [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", jobs]
    planned = [
        Phase("build", setup, 150, build),
        Phase("environment", [sys.executable, "-c", _ENVIRONMENT], 40, {}),
    ]
    for backend, seconds in zip(backends, (100, 70), strict=False):
        test = [*python, "pytest", "tests/ops", "-q", "--backend", backend, "-p", "no:benchmark"]
        if importlib.util.find_spec("xdist") and not rehearse:
            test += ["-n", str(min(8, os.cpu_count() or 1))]
        extra = [] if backend == "cuda" else ["--brief"]
        planned.append(Phase(f"tests-{backend}", [*test, *extra], seconds, {}))
    measure = [*python, "pytest", *(f"benchmarks/{name}" for name in _BENCHMARKS), "-q"]
    measure += ["--quick"] if rehearse else ["--bench-device", "cuda", "--bench-seconds", "0.3"]
    planned.append(Phase("benchmarks", measure, 140, {}))
    planned += _pictures(python, rehearse)
    for backend in backends:
        small = [*python, "benchmarks.small_cases", "--device", device, "--backend", backend]
        for tool in ("memcheck", "racecheck"):
            planned.append(
                Phase(f"{tool}-{backend}", _sanitized(tool, small, rehearse), 45, _EXACT)
            )
    if not rehearse:  # what compiles for minutes has what time is left
        planned.append(_compiled(python))
    return planned


_PICTURES = "benchmarks/models/bench_pictures.py"


def _pictures(python: list[str], rehearse: bool) -> list[Phase]:
    """Whole networks, first without compiling any, and a trace of the headline's."""
    measure = [*python, "pytest", _PICTURES, "-q", "--no-compile"]
    trace = [*python, "benchmarks.models.picture_trace"]
    if rehearse:
        trace += ["--model", "clipweather_tiny", "--size", "128x96", "--results", str(LOGS)]
        return [
            Phase("pictures", [*measure, "--quick"], 90, {}),
            Phase("trace", trace, 40, {}),
        ]
    measure += ["-k", "not compiled", "--bench-device", "cuda"]
    trace += ["--device", "cuda", "--size", "1920x1080", "--dtype", "bfloat16", "--given-prior"]
    return [Phase("pictures", measure, 90, {}), Phase("trace", trace, 40, {})]


def _compiled(python: list[str]) -> Phase:
    command = [*python, "pytest", _PICTURES, "-q", "-k", "compiled", "--bench-device", "cuda"]
    return Phase("pictures-compiled", command, 240, {})


#: Every tensor gets an allocation of its own, so that one byte past its end is seen.
_EXACT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def _sanitized(tool: str, command: list[str], rehearse: bool) -> list[str]:
    if rehearse:
        return command
    found = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    return [found, "--tool", tool, "--error-exitcode", "9", "--print-limit", "20", *command]


def run(phase: Phase, limit: float, site: Path | None) -> Outcome:
    """Runs one phase; its output goes to its log."""
    path = [str(ROOT), *([str(site)] if site else []), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, **phase.environment}
    environment["PYTHONPATH"] = os.pathsep.join(part for part in path if part)
    started = time.monotonic()
    with (LOGS / f"{phase.name}.log").open("w") as log:
        try:
            process = subprocess.Popen(
                phase.command,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(phase.name, f"skipped: {error}", 0.0)
        try:
            code = process.wait(limit)
            word = "passed" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            _stop(process)
            word = "out of time"
    return Outcome(phase.name, word, time.monotonic() - started)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Asks the phase to end, then ends it and everything it started."""
    os.killpg(process.pid, signal.SIGINT)
    try:
        process.wait(_GRACE)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _keep_partial(since: float) -> None:
    """Makes what an interrupted benchmark measured a result, unless a complete file is newer."""
    for path in PARTIAL.glob("*/*.json"):
        target = RESULTS / path.parent.name / path.name
        newer = target.exists() and target.stat().st_mtime >= since
        if (
            path.stat().st_mtime >= since
            and not newer
            and '"scope": "quick"' not in path.read_text()
        ):
            write_atomically(target, path.read_text(encoding="utf-8"))


def _tail(name: str, lines: int) -> str:
    text = (LOGS / f"{name}.log").read_text(errors="replace").splitlines()
    return "\n".join(f"    {line}" for line in text[-lines:])


def _archive(folder: Path, since: float) -> Path:
    """Logs and the results of this run in one file."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "gpu.tar.gz"
    with tarfile.open(target, "w:gz") as archive:
        for path in [*LOGS.glob("*.log"), *RESULTS.glob("*/*.json")]:
            if path.stat().st_mtime >= since:
                archive.add(path, path.relative_to(ROOT))
    return target


def _install(wheels: Path) -> Path:
    """Unpacks wheels into a folder for this run only."""
    site = LOGS / "site"
    files = [str(path) for path in sorted(wheels.glob("*.whl"))]
    options = ["--quiet", "--no-index", "--no-deps", "--upgrade", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *files], check=True)
    return site


def _print_table(outcomes: list[Outcome], since: float) -> None:
    from benchmarks.rows import rows

    print("\nphase                 seconds  outcome")
    for outcome in outcomes:
        print(f"{outcome.name:<20} {outcome.seconds:8.1f}  {outcome.word}")
    for content in load_all():
        path = RESULTS / content["folder"] / f"{content['topic']}.json"
        if path.stat().st_mtime < since:
            continue
        print(f"\n{content['topic']} on {content['folder']}")
        for row in rows(content):
            roof = row.roof
            share = f"{roof[1]:4.0%} {roof[0]}" if roof else ""
            ratios = " ".join(f"{name} {row.ratio(name):.2f}x" for name in row.opponents)
            print(f"  {row.name:<46} {row.own_seconds * 1e6:9.1f} us {share:<11} {ratios}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--wheels", type=Path, help="a folder of wheels to use in this run")
    parser.add_argument("--output", type=Path, help="where to put one archive of logs and results")
    parser.add_argument("--rehearse", action="store_true", help="the same phases on the CPU")
    options = parser.parse_args(arguments)
    started, since = time.monotonic(), time.time()
    if not options.rehearse and not shutil.which("nvidia-smi"):
        print("gpu: nvidia-smi is not on PATH, so there is no GPU to measure; see --rehearse")
        return 2
    shutil.rmtree(LOGS, ignore_errors=True)
    LOGS.mkdir(parents=True)
    site = _install(options.wheels) if options.wheels else None
    if site:
        sys.path.insert(0, str(site))
    for name in missing(options.rehearse):
        print(
            f"missing: {name}; CONTRIBUTING.md says how wheels travel to a machine without network"
        )
    outcomes = []
    for phase in phases(options.rehearse):
        left = DEADLINE - (time.monotonic() - started)
        if left < _GRACE:
            outcomes.append(Outcome(phase.name, "skipped: no time left", 0.0))
            continue
        outcome = run(phase, min(phase.seconds, left), site)
        outcomes.append(outcome)
        print(f"{outcome.name}: {outcome.word} after {outcome.seconds:.0f} s", flush=True)
        if outcome.word != "passed" and not outcome.word.startswith("skipped"):
            print(_tail(outcome.name, 25), flush=True)
    _keep_partial(since)
    _print_table(outcomes, since)
    if options.output:
        print(f"\npacked {_archive(options.output, since)}")
    return 0 if all(outcome.word == "passed" for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
