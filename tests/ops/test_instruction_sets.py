"""The CPU kernels of every instruction set pass the battery, each forced in its own process."""

from __future__ import annotations

import subprocess
import sys

import pytest

from child import environment, run_battery
from clipweather_fast.ops._native import CPU_ISAS, core, why_not_loaded


def why_not(isa: str) -> str | None:
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


@pytest.mark.parametrize("isa", CPU_ISAS)
def test_battery(isa: str) -> None:
    reason = why_not(isa)
    if reason:
        pytest.skip(reason)
    written = run_battery("cpu", CLIPWEATHER_CPU_ISA=isa)
    assert f"CPU kernels: {isa}," in written


IN_A_CHILD = """
import ctypes
from clipweather_fast import _C
granted, get_permissions, arch_prctl = ctypes.c_uint64(), 0x1022, 158
if ctypes.CDLL(None).syscall(arch_prctl, get_permissions, ctypes.byref(granted)):
    granted.value = 0
print(granted.value >> 18 & 1)
"""


def test_the_matrix_unit_is_asked_for_where_it_is_used_and_nowhere_else() -> None:
    """Linux gives it to a process for good, and signal stacks must be larger then."""
    if sys.platform != "linux" or why_not("avx2"):
        pytest.skip("Linux on x86 has such permissions")
    for isa in ("avx2", "amx"):
        if why_not(isa):
            continue
        done = subprocess.run(
            [sys.executable, "-c", IN_A_CHILD],
            env=environment(CLIPWEATHER_CPU_ISA=isa),
            capture_output=True,
            text=True,
            check=True,
        )
        assert int(done.stdout) == (isa == "amx")


def test_unknown_instruction_set_stops_the_import() -> None:
    missing = why_not_loaded()
    if missing:
        pytest.skip(missing)
    done = subprocess.run(
        [sys.executable, "-c", "from clipweather_fast import _C"],
        env=environment(CLIPWEATHER_CPU_ISA="mmx"),
        capture_output=True,
        text=True,
        check=False,
    )
    words = "CLIPWEATHER_CPU_ISA must be baseline, avx2, avx512, avx512_bf16 or amx, got mmx"
    assert done.returncode == 1
    assert words in done.stderr


def test_the_best_instruction_set_is_chosen() -> None:
    """Nothing better than the default can be forced."""
    missing = why_not_loaded()
    if missing:
        pytest.skip(missing)
    done = subprocess.run(
        [sys.executable, "-c", "from clipweather_fast import _C; print(_C.cpu_isa)"],
        env=environment(CLIPWEATHER_CPU_ISA=""),
        capture_output=True,
        text=True,
        check=True,
    )
    default = int(done.stdout)
    assert default >= core().cpu_isa
    assert all(why_not(isa) is not None for isa in CPU_ISAS[default + 1 :])
