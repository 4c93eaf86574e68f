"""Means by weather, and how they treat identical pictures."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import pytest

from clipweather_fast.evaluation import Evaluation, Record, Score


def record(
    name: str, weather: str | None, psnr: float, ssim: float, before: float | None = None
) -> Record:
    return Record(
        *(name, weather, None, 60, 40),
        scores={"paper": Score("paper", psnr, ssim)},
        before={} if before is None else {"paper": Score("paper", before, 0.5)},
    )


def test_means_by_weather_by_hand() -> None:
    records = [
        record("a", "rain", 30, 0.9, 20),
        record("b", "snow", 20, 0.7, 19),
        record("c", "rain", 40, 1.0, 22),
        Record("d", "snow", "is no picture"),
    ]
    means = Evaluation(records, ["paper"]).means("paper")
    assert list(means) == ["snow", "rain", "mean of weathers", "all pictures"]
    rain, snow, each, every = (
        means[n] for n in ("rain", "snow", "mean of weathers", "all pictures")
    )
    assert (rain.pictures, rain.psnr, rain.ssim) == (2, 35, pytest.approx(0.95))
    assert (rain.input_psnr, rain.input_ssim, rain.gain) == (21, 0.5, 14)
    assert (snow.pictures, snow.psnr, snow.gain) == (1, 20, 1)
    assert (each.pictures, each.psnr, each.gain) == (3, 27.5, 7.5)
    assert (every.pictures, every.psnr) == (3, pytest.approx(30))
    assert every.gain == pytest.approx(29 / 3)
    assert {mean.protocol for mean in means.values()} == {"paper"}


def test_identical_pictures_are_counted_and_left_out_of_the_mean() -> None:
    records = [record("a", "snow", math.inf, 1, math.inf), record("b", "snow", 30, 0.8, 20)]
    mean = Evaluation(records, ["paper"]).means("paper")["all pictures"]
    assert (mean.pictures, mean.identical, mean.psnr) == (2, 1, 30)
    assert mean.ssim == pytest.approx(0.9)
    assert (mean.input_psnr, mean.input_identical, mean.gain) == (20, 1, 10)
    alone = Evaluation(records[:1], ["paper"])
    mean = alone.means("paper")["all pictures"]
    assert (mean.psnr, mean.identical, mean.gain) == (math.inf, 1, None)
    plain = json.loads(json.dumps(alone.summary(), allow_nan=False))
    assert plain["means"]["paper"]["snow"]["psnr"] == "inf"


def test_nothing_scored_is_no_crash() -> None:
    empty = Evaluation([Record("a", None, "is no picture")], ["paper"])
    assert empty.means("paper") == {}
    assert empty.summary()["means"] == {"paper": {}}
    assert empty.worst("paper", 3) == []


def test_unknown_weather_and_unknown_inputs() -> None:
    means = Evaluation([record("a", None, 30, 0.9)], ["paper"]).means("paper")
    assert list(means) == ["unknown", "all pictures"]
    assert means["unknown"].input_psnr is means["unknown"].gain is None
    mixed = [record("a", "snow", 30, 0.9, 20), record("b", "snow", 30, 0.9)]
    assert Evaluation(mixed, ["paper"]).means("paper")["snow"].input_psnr is None


def test_worst_and_best() -> None:
    records = [record(str(n), "snow", psnr, 0.5) for n, psnr in enumerate((30, 10, math.inf, 20))]
    evaluation = Evaluation(records, ["paper"])
    assert [r.name for r in evaluation.worst("paper", 2)] == ["1", "3"]
    assert [r.name for r in evaluation.worst("paper", 2, best=True)] == ["2", "0"]


def test_the_files_say_the_protocol_of_every_figure(tmp_path: Path) -> None:
    records = [
        record('na,"me\n', "snow", 100 / 3, 0.9, 20),
        record("same", "snow", math.inf, 1.0, 20),
        Record("bad", None, "is no picture"),
    ]
    Evaluation(records, ["paper"], {"model": "m"}).write(tmp_path)
    with open(tmp_path / "pictures.csv", newline="") as file:
        first, second, third = csv.DictReader(file)
    assert first["name"] == 'na,"me\n'
    assert float(first["psnr_paper"]) == 100 / 3
    assert float(first["gain_paper"]) == 100 / 3 - 20
    assert (second["psnr_paper"], second["gain_paper"]) == ("inf", "")
    assert (third["psnr_paper"], third["error"]) == ("", "is no picture")
    figures = [n for n in first if "psnr" in n or "ssim" in n or "gain" in n]
    assert figures
    assert all(name.endswith("_paper") for name in figures)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["pictures"], summary["scored"]) == (3, 2)
    assert summary["failed"] == [{"name": "bad", "error": "is no picture"}]
    assert summary["settings"] == {"model": "m"}
    assert summary["protocols"]["paper"]["peak"] == 255
    assert summary["means"]["paper"]["snow"]["identical"] == 1
