"""The Triton kernels run by the interpreter, in a process of their own: it is chosen at import.

`make triton` runs the whole brief battery this way; here it is the tests of values.
"""

from __future__ import annotations

import os

import pytest

from child import run_battery

pytest.importorskip("triton", reason="triton is not installed")


@pytest.mark.skipif(
    os.environ.get("TRITON_INTERPRET") == "1", reason="these very tests are running interpreted"
)
def test_values_and_gradients_interpreted() -> None:
    chosen = "values_and_gradients or float32_parameters or results_repeat"
    run_battery("triton", "-k", chosen, seconds=3000, TRITON_INTERPRET="1")
