"""What the tests of evaluation share: a small dataset and a restorer that needs no network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipweather_fast.restore import Picture

#: Weathers and the pictures of each in the small dataset.
PICTURES = {"snow": ["a.png", "two words.jpg", "c.png"], "rain": ["a.png", "b.png"]}


def write_dataset(root: Path, size: tuple[int, int] = (40, 60)) -> Path:
    """``<weather>/input`` and ``<weather>/gt``, smooth pictures and the same with noise."""
    random = np.random.default_rng(0)
    y, x = np.mgrid[: size[0], : size[1]]
    for number, (weather, names) in enumerate(PICTURES.items()):
        for place in ("input", "gt"):
            (root / weather / place).mkdir(parents=True)
        for name in names:
            phase = random.uniform(0, 6, 3)
            truth = np.stack([128 + 60 * np.sin(x / 9 + y / 7 + p) for p in phase], 2)
            noisy = truth + random.normal(0, 12 + 6 * number, truth.shape)
            for place, pixels in (("gt", truth), ("input", noisy)):
                image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
                image.save(root / weather / place / name, quality=97)
    return root


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """A dataset of five small pictures of two weathers."""
    return write_dataset(tmp_path / "data")


def smoothed(picture: Picture) -> Picture:
    """A restorer: every pixel the mean of its 3 × 3 neighbours."""
    padded = np.pad(picture.pixels.astype(np.float64), ((1, 1), (1, 1), (0, 0)), "edge")
    high, wide = picture.pixels.shape[:2]
    near = [padded[i : i + high, j : j + wide] for i in range(3) for j in range(3)]
    mean = np.round(np.mean(near, 0)).astype(picture.pixels.dtype)
    return picture.with_pixels(np.broadcast_to(mean, (high, wide, 3)))


@pytest.fixture
def restorer() -> object:
    """A function that takes noise out of pictures."""
    return smoothed
