"""The table of docs/metrics.md, computed again."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipweather_fast.evaluation import PROTOCOLS, score

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_the_page_states_what_is_computed(protocol: str) -> None:
    truth = np.asarray(Image.open(ROOT / "examples/coffee.jpg"))
    noise = np.random.default_rng(0).normal(0, 8, truth.shape)
    pictures = [
        np.clip(np.round(truth + noise), 0, 255).astype(np.uint8),
        np.clip(np.round(truth + noise[..., :1]), 0, 255).astype(np.uint8),
        (truth + noise) / 255,
    ]
    page = (ROOT / "docs/metrics.md").read_text()
    rows = re.findall(rf"^\| `{protocol}` \| (\d.*dB.*) \|$", page, re.MULTILINE)
    assert len(rows) == 1
    stated = [tuple(map(float, re.findall(r"[\d.]+", cell))) for cell in rows[0].split(" | ")]
    for (decibels, alike), picture in zip(stated, pictures, strict=True):
        found = score(picture, truth, [protocol])[protocol]
        # Decoders of JPEG may differ by a level.
        assert decibels == pytest.approx(found.psnr, abs=0.02)
        assert alike == pytest.approx(found.ssim, abs=0.0003)
