"""Every shipped Triton configuration compiles for an H100, on a machine without one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from child import environment

pytest.importorskip("triton", reason="triton is not installed")

TOOL = Path(__file__).parents[2] / "benchmarks" / "triton_resources.py"


def measured(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The tool's run, never interpreted: a kernel of the interpreter cannot be compiled."""
    return subprocess.run(
        [sys.executable, str(TOOL), *arguments],
        env=environment(TRITON_INTERPRET="0"),
        capture_output=True,
        text=True,
        timeout=3000,
        check=False,
    )


@pytest.mark.parametrize("op", ["sar_conv2d", "sar_logits"])
def test_shipped_configurations_compile_without_spills(op: str) -> None:
    done = measured("--only", op)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line for line in done.stdout.splitlines() if f" {op}_" in line]
    kernels = {line.split()[3] for line in lines}
    assert {f"{op}_forward_kernel"} < kernels, "no backward kernel was compiled"
    assert all(0 < int(line.split()[0]) <= 255 for line in lines)


def test_a_name_that_no_kernel_has_fails() -> None:
    assert measured("--only", "no_such_kernel").returncode == 1
