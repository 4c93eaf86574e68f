"""The battery in a process of its own, for what is fixed when a process starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

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
