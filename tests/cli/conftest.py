"""What the tests of the command share."""

from __future__ import annotations

from pathlib import Path

import pytest

from command import save_small_network


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small network's weights and configuration."""
    return save_small_network(tmp_path_factory.mktemp("checkpoint"))
