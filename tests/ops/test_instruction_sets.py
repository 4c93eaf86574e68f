"""The CPU kernels of every instruction set pass the battery, each forced in its own process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from child import environment, run_battery, why_not_isa
from clipweather_fast.ops import _native
from clipweather_fast.ops._native import CPU_ISAS, bfloat16_pays, core, why_not_loaded


@pytest.mark.parametrize("isa", CPU_ISAS)
def test_battery(isa: str) -> None:
    reason = why_not_isa(isa)
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
    if sys.platform != "linux" or why_not_isa("avx2"):
        pytest.skip("Linux on x86 has such permissions")
    for isa in ("avx2", "amx"):
        if why_not_isa(isa):
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
    """Nothing better than the default can be forced, except for pairs of bfloat16 where they are
    slower than float32."""
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
    better = [isa for isa in CPU_ISAS[default + 1 :] if why_not_isa(isa) is None]
    slow = "GenuineIntel" in cpu_flags() and "avx512_fp16" in cpu_flags()
    assert better == (["avx512_bf16"] if slow and CPU_ISAS[default] == "avx512" else [])


def cpu_flags() -> str:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8") if file.exists() else ""


@pytest.mark.parametrize(
    ("isa", "amx", "known", "pays"),
    [
        ("amx", "granted", {}, True),
        ("avx512_bf16", "none", {}, True),
        ("avx512", "none", {"avx512_bf16": True, "avx512_fp16": True}, False),
        ("avx512", "refused", {}, False),
        ("avx512", "granted", {}, True),  # built without AMX: PyTorch's products have it
        ("avx2", "none", {}, False),
        (None, "none", {"avx512_bf16": True}, True),
        (None, "none", {"avx512_bf16": True, "avx512_fp16": True}, False),
        (None, "none", {"avx512_bf16": True, "avx512_fp16": True, "cpu_name": "AMD"}, True),
        (None, "none", {"avx512_f": True}, False),
        (None, "granted", {}, True),
        (None, "none", None, False),
    ],
)
def test_where_bfloat16_pays(
    isa: str | None,
    amx: str,
    known: dict[str, Any] | None,
    pays: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    core = None if isa is None else SimpleNamespace(cpu_isa=CPU_ISAS.index(isa))
    monkeypatch.setattr(_native, "_load", lambda: (core, "" if core else "not built"))
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx != "none", raising=False)
    monkeypatch.setattr(torch.cpu, "_init_amx", lambda: amx == "granted", raising=False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    if known is None:
        monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert bfloat16_pays() is pays
