"""The weights that come with the package: what they are, and that they restore."""

from __future__ import annotations

import csv
import inspect
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clipweather_fast import Restorer
from clipweather_fast.cli import _options
from clipweather_fast.data import Pair, find_pairs
from clipweather_fast.evaluation import psnr, weights_digest
from clipweather_fast.models import create_model, default_config
from clipweather_fast.models.registry import WEIGHTS
from clipweather_fast.restore import read_picture

PAIRS = Path(__file__).parents[2] / "examples" / "pairs"
#: dB over the input that the pairs in examples/ gain at least.
GAIN = {"snow": 5.5, "rain": 6.8, "raindrop": 4.2}


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


@pytest.mark.parametrize("name", WEIGHTS)
def test_the_cards_figures_are_those_of_these_weights(name: str) -> None:
    folder = WEIGHTS[name]
    card = (folder / "README.md").read_text(encoding="utf-8")
    digest = weights_digest(create_model(name, pretrained=True))
    judged, clear = (
        json.loads((folder / file).read_text(encoding="utf-8"))
        for file in ("evaluation.json", "evaluation_clear.json")
    )
    for found in (judged, clear):
        assert found["settings"]["weights"] == digest
        assert found["failed"] == []
    for weather in ("snow", "rain", "raindrop"):
        mean = judged["means"]["rgb"][weather]
        assert f"{mean['psnr']:.2f} dB / {mean['ssim']:.3f} | +{mean['gain']:.2f} dB |" in card
    with (folder / "evaluation_clear.csv").open(encoding="utf-8") as file:
        worst = min(float(row["psnr_rgb"]) for row in csv.DictReader(file))
    mean = clear["means"]["rgb"]["all pictures"]
    assert (
        f"at {mean['psnr']:.1f} dB against itself (mean of the seven; {worst:.1f} the worst" in card
    )


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
