"""Runs for the tests: photographs, small configurations, and what a run leaves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from PIL import Image
from torch import Tensor

from clipweather_fast.training import TrainingConfig

#: A network that trains in milliseconds.
MODEL = {
    "name": "clipweather_tiny",
    "dims": [8, 16, 16, 32],
    "depths": [1, 1, 1, 1],
    "prior_encoder": "convolutional:32",
    "prior_dim": 32,
    "prior_width": 32,
    "prior_blocks": 1,
    "prior_tokens": 4,
    "drop_path_rate": 0.3,
    "gamma_init": 0.5,
    "residual_output": True,
}


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """accelerate keeps the settings of a process's first run; every test begins anew."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def photographs(folder: Path, count: int = 6, side: int = 80) -> Path:
    """Smooth pictures with edges, as PNG files."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(5)
    y, x = np.mgrid[0:side, 0:side] / side
    for i in range(count):
        a, b, c = random.uniform(1, 6, 3)
        planes = [np.sin(a * x + i), np.cos(b * y + c * x), np.sign(np.sin(c * 3 * (x - y)))]
        pixels = np.stack(planes, -1) * 70 + 128
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"photograph {i}.png")
    return folder


def settings(folder: Path, **sections: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration of a few steps; ``sections`` are changed in it."""
    base: dict[str, dict[str, Any]] = {
        "run": {"output": str(folder / "run"), "epochs": 2, "device": "cpu", "seed": 3},
        "model": dict(MODEL),
        "data": {
            "clean": [str(folder / "photographs")],
            "samples_per_epoch": 10,
            "crop": 64,
            "batch": 2,
            "workers": 0,
        },
        "losses": {"perceptual": 0.0},
        "optimizer": {"lr": 1e-3},
        "log": {"every": 1, "pictures": 0},
        "checkpoint": {"every": 2, "keep": 2},
    }
    for name, values in sections.items():
        base[name] = {**base.get(name, {}), **values}
    return base


def configuration(folder: Path, **sections: Mapping[str, Any]) -> TrainingConfig:
    """As :func:`settings`; the photographs are made if they are not there."""
    if not (folder / "photographs").exists():
        photographs(folder / "photographs")
    return TrainingConfig.from_dict(settings(folder, **sections))


def tensors(content: Any, prefix: str = "") -> dict[str, Tensor]:
    """All tensors in nested mappings, by path."""
    found: dict[str, Tensor] = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            found[prefix + name] = value
        elif isinstance(value, Mapping):
            found |= tensors(value, f"{prefix}{name}/")
    return found


def last_state(output: Path) -> dict[str, Tensor]:
    """Weights, averages and the optimizer's state in a run's newest checkpoint."""
    path = sorted((output / "checkpoints").glob("step-*.pt"))[-1]
    return tensors(torch.load(path, weights_only=True))


def assert_same_state(one: Path, other: Path) -> None:
    """That two runs ended with the same bits."""
    a, b = last_state(one), last_state(other)
    assert a.keys() == b.keys()
    assert len(a) > 100
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
