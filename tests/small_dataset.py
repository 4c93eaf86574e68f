"""Datasets of small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEIGHT, WIDTH = 20, 28


def noise(seed: int, height: int = HEIGHT, width: int = WIDTH) -> NDArray[Any]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def put(root: Path, *names: str, seed: int | None = None, **size: int) -> None:
    """Writes a picture for each name, all different unless a seed is given."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        own = sum(name.encode()) * 1000 + len(name) if seed is None else seed
        Image.fromarray(noise(own, **size)).save(path)


def touch(root: Path, *names: str) -> None:
    """Writes files that have the names of pictures, where only names count."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
