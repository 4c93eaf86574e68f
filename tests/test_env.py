"""Environment variables: defaults, values, and what a wrong one says."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch

from clipweather_fast import env, ops
from clipweather_fast.ops import BackendUnavailable


def test_unset_and_empty_variables_give_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, variable in env.VARIABLES.items():
        monkeypatch.delenv(name, raising=False)
        assert env.read(name) == variable.default
        monkeypatch.setenv(name, "")
        assert env.read(name) == variable.default
        monkeypatch.setenv(name, "given")
        assert env.read(name) == "given"


def test_an_undeclared_variable_cannot_be_read() -> None:
    with pytest.raises(KeyError, match="CLIPWEATHER_NOTHING"):
        env.read("CLIPWEATHER_NOTHING")


def call() -> torch.Tensor:
    return ops.depthwise_conv2d(torch.ones(1, 4, 3, 3), torch.ones(4, 1, 3, 3))


def test_a_wrong_backend_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPWEATHER_BACKEND", "fast")
    with pytest.raises(ValueError, match=r"CLIPWEATHER_BACKEND must be one of auto, .*'fast'"):
        call()


def test_a_backend_named_by_the_environment_runs_or_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPWEATHER_BACKEND", "cuda")
    with pytest.raises(BackendUnavailable, match="CUDA kernels take CUDA tensors, got cpu"):
        call()
    monkeypatch.setenv("CLIPWEATHER_BACKEND", "reference")
    assert call()[0, 0, 1, 1] == 9


def isa_under(value: str) -> subprocess.CompletedProcess[str]:
    program = (
        "from clipweather_fast.ops import _native\n"
        "print(_native.why_not_loaded() or _native.CPU_ISAS[_native.core().cpu_isa])\n"
    )
    environment = {**os.environ, "CLIPWEATHER_CPU_ISA": value}
    return subprocess.run(
        [sys.executable, "-P", "-c", program],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )


def test_an_instruction_set_can_be_forced_down() -> None:
    assert isa_under("baseline").stdout.strip() == "baseline"
    best = isa_under("").stdout.strip()
    assert isa_under(best).stdout.strip() == best


def test_a_wrong_instruction_set_is_refused_by_name() -> None:
    assert "CLIPWEATHER_CPU_ISA must be baseline, avx2" in isa_under("sse9").stdout
