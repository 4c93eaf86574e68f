"""What the tests of training share: a fresh state of accelerate, and its warnings."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from accelerate.state import AcceleratorState, GradientState


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the settings of a process's first run; every test begins anew."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
