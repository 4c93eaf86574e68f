"""The battery in a process of its own, for what is fixed when a process starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from clipweather_fast.ops._native import CPU_ISAS, why_not_loaded

TESTS = Path(__file__).parent


def environment(**variables: str) -> dict[str, str]:
    """This process's environment and import path, with some variables changed."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)} | variables


def run_battery(backend: str, *more: str, seconds: float = 900, **variables: str) -> str:
    """Runs the brief battery of one backend; fails unless at least one test ran and all passed.

    Returns:
        What pytest wrote.
    """
    command = [sys.executable, "-P", "-m", "pytest", str(TESTS / "ops"), "--brief"]
    command += ["--backend", backend, "--tb=short", *more]  # not -q: it hides the header
    command += ["-p", "no:cacheprovider", "-p", "no:benchmark"]
    done = subprocess.run(
        command,
        env=environment(**variables),
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    written = done.stdout + done.stderr
    assert done.returncode == 0, f"the {backend} battery failed under {variables}:\n{written}"
    passed = re.search(rf"^{backend}: [1-9]\d* passed", written, re.MULTILINE)
    assert passed, f"no {backend} test ran under {variables}:\n{written}"
    return written


def why_not_isa(isa: str) -> str | None:
    """None, or why this processor or build has not got the instruction set."""
    missing = why_not_loaded()
    if missing:
        return missing
    done = subprocess.run(
        [sys.executable, "-c", "from clipweather_fast import _C; print(_C.cpu_isa)"],
        env=environment(CLIPWEATHER_CPU_ISA=isa),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        assert CPU_ISAS[int(done.stdout)] == isa, "the variable was not obeyed"
        return None
    reason = done.stderr.strip().splitlines()[-1]
    assert "was asked for, but this processor, build or system goes up to" in reason, done.stderr
    return reason
