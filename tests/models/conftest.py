"""Prior encoders that need no CLIP, in place of the real ones."""

from __future__ import annotations

import sys
import types

import pytest

from clipweather_fast import clip
from small_networks import FakePriorEncoder


@pytest.fixture(autouse=True)
def built(monkeypatch: pytest.MonkeyPatch) -> list[FakePriorEncoder]:
    """Prior encoders are fakes here; the list of those that were built."""
    encoders: list[FakePriorEncoder] = []

    def build(kind: str, weights: str | None = None) -> FakePriorEncoder:
        family, _, rest = kind.partition(":")
        dim = int(rest or 512) if family == "convolutional" else 12 if rest == "fake" else 512
        encoders.append(FakePriorEncoder(kind, weights, dim))
        return encoders[-1]

    fake = types.ModuleType("clipweather_fast.clip")
    fake.build_prior_encoder = build  # type: ignore[attr-defined]
    fake.WeatherClassifier = clip.WeatherClassifier  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "clipweather_fast.clip", fake)
    return encoders
