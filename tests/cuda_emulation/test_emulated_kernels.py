"""The battery's values and gradients on the CUDA sources, without a GPU (see emulated.py)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = HERE.parent
OPERATORS = (
    "sar_conv2d",
    "depthwise_conv2d",
    "sar_logits",
    "sar_mixer",
    "reduced_kv_attention",
)


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")
@pytest.mark.parametrize("order", ["forward", "reverse"])
def test_values_and_gradients_in_either_order_of_threads(order: str) -> None:
    """A result that holds in one order of a block's threads only lacks a barrier."""
    environment = os.environ | {
        "CLIPWEATHER_EMULATION_ORDER": order,
        "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(HERE)]),
        "OMP_NUM_THREADS": "1",
    }
    files = [str(TESTS / "ops" / f"test_{name}.py") for name in OPERATORS]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "emulated", "--backend", "cuda"]
    # The reverse order finds missing barriers, and for those a few cases will do.
    chosen = [
        "-k",
        "test_values_and_gradients",
        *(["--brief"] if order == "reverse" else []),
        *files,
    ]
    run = subprocess.run(
        [*command, *chosen],
        env=environment,
        cwd=TESTS.parent,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-2000:]
    assert "cuda: " in run.stdout
