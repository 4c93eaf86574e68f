"""The weights that come with the package: what they are, and that they restore."""

from __future__ import annotations

import inspect
from pathlib import Path

import numpy as np
import pytest
import torch

from clipweather_fast import Restorer
from clipweather_fast.cli import _options
from clipweather_fast.data import Pair, find_pairs
from clipweather_fast.evaluation import psnr
from clipweather_fast.models import create_model, default_config
from clipweather_fast.models.registry import WEIGHTS
from clipweather_fast.restore import read_picture

PAIRS = Path(__file__).parents[2] / "examples" / "pairs"
#: dB over the input that the pairs in examples/ gain at least.
GAIN = {"snow": 5.5, "rain": 6.0, "raindrop": 2.1}


@pytest.fixture(scope="module")
def restorer() -> Restorer:
    return Restorer(device="cpu", dtype="float32")


def pair_of(weather: str) -> Pair:
    (pair,) = (pair for pair in find_pairs(PAIRS) if pair.weather == weather)
    return pair


@pytest.mark.parametrize("name", WEIGHTS)
def test_a_folder_of_weights_is_whole(name: str) -> None:
    folder = WEIGHTS[name]
    assert (folder / "model.safetensors").stat().st_size <= 12e6
    card = (folder / "README.md").read_text(encoding="utf-8")
    for said in ("mini-synthetic", "seed", "rgb", "photographs"):
        assert said in card
    network = create_model(name, pretrained=True)
    assert network.config.replace(drop_path_rate=0.0) == default_config(name).replace(
        drop_path_rate=0.0
    ).replace(gamma_init=network.config.to_dict()["gamma_init"])
    assert not network.training
    assert all(parameter.dtype == torch.float32 for parameter in network.parameters())


def test_it_is_the_default_everywhere() -> None:
    assert _options.DEFAULT_MODEL in WEIGHTS
    assert inspect.signature(Restorer).parameters["model_or_name"].default == _options.DEFAULT_MODEL


@pytest.mark.parametrize("weather", GAIN)
def test_weather_is_removed(weather: str, restorer: Restorer) -> None:
    pair = pair_of(weather)
    seen, truth = (read_picture(path).pixels for path in (pair.image, pair.truth))
    restored = restorer(seen)
    assert psnr(restored, truth, "rgb") - psnr(seen, truth, "rgb") > GAIN[weather]


@pytest.mark.parametrize("weather", GAIN)
def test_a_clear_picture_stays(weather: str, restorer: Restorer) -> None:
    truth = read_picture(pair_of(weather).truth).pixels
    restored = restorer(truth)
    assert psnr(restored, truth, "rgb") > 38.0
    assert np.abs(restored.astype(int) - truth).max() > 0  # it is not a copy of its input
