"""Crops of clear photographs, with the weather and the seed for the synthesis."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from clipweather_fast.data import WEATHERS, CleanDataset, DatasetError
from clipweather_fast.data.choices import Choices
from clipweather_fast.data.recoloring import recolored
from clipweather_fast.restore import Picture, write_picture
from small_dataset import HEIGHT, WIDTH, put


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    put(tmp_path, "photos/a.png", "photos/deep/b.png")
    return tmp_path / "photos"


def test_a_sample_is_a_crop_with_weather_and_seed(folder: Path) -> None:
    dataset = CleanDataset(folder, crop=9, samples_per_epoch=40, flips=False)
    wholes = [np.array(Image.open(path)) for path in dataset.files]
    assert len(dataset) == 40
    weathers, seeds = [], set()
    for index in range(40):
        sample = dataset[index]
        assert sorted(sample) == ["index", "seed", "truth", "weather"]
        crop = (sample["truth"].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
        whole = wholes[index % 2]
        windows = np.lib.stride_tricks.sliding_window_view(whole, (9, 9, 3))
        assert (windows == crop).all(axis=(3, 4, 5)).any()
        weathers.append(WEATHERS[sample["weather"]])
        seeds.add(sample["seed"].item())
    assert set(weathers) == set(WEATHERS)
    assert len(seeds) == 40
    assert all(0 <= seed < 1 << 63 for seed in seeds)


@pytest.mark.parametrize("held_bytes", [0, 1 << 20])
def test_a_sample_depends_on_seed_epoch_and_index_alone(folder: Path, held_bytes: int) -> None:
    choices: dict[str, Any] = {"crop": 8, "samples_per_epoch": 6, "shrink": 2.0}
    dataset = CleanDataset(folder, seed=1, held_bytes=held_bytes, **choices)
    held = CleanDataset(folder, seed=1, **choices)
    for epoch in (0, 1):
        dataset.set_epoch(epoch)
        held.set_epoch(epoch)
        loader = DataLoader(dataset, batch_size=2, num_workers=1 if epoch else 0)
        for batch in loader:
            for row, index in enumerate(batch["index"].tolist()):
                for name, value in held[index].items():
                    assert torch.equal(batch[name][row], value), name
    held.set_epoch(0)
    assert not torch.equal(held[0]["truth"], dataset[0]["truth"])


def test_sixteen_bits_keep_their_values(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    write_picture(Picture(deep, "RGB"), tmp_path / "a.png")
    exact = torch.from_numpy(deep.astype(np.float32)).permute(2, 0, 1) / 65535
    for held_bytes in (0, 1 << 20):
        dataset = CleanDataset(tmp_path, crop=HEIGHT, held_bytes=held_bytes, flips=False)
        crop = dataset[0]["truth"]
        windows = exact.unfold(2, HEIGHT, 1)
        assert (windows.permute(2, 0, 1, 3) == crop).flatten(1).all(dim=1).any()


def test_shrinking_shows_more_of_the_photograph(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (200, 200, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
    dataset = CleanDataset(tmp_path, crop=50, samples_per_epoch=50, flips=False, shrink=10)
    steps = []
    for index in range(50):
        row = dataset[index]["truth"][0, 25] * 255
        steps.append(float(row[40] - row[10]) / 30)
    assert min(steps) >= 0.95
    assert max(steps) <= 4.05  # the photograph is four crops wide
    assert max(steps) > 3.5
    assert sum(step < 2 for step in steps) in range(15, 36)


def test_photographs_of_several_kinds_are_held_together(tmp_path: Path) -> None:
    put(tmp_path, "a.png", height=7, width=9)  # an odd number of bytes
    deep = np.random.default_rng(0).integers(0, 65536, (8, 9, 3), dtype=np.uint16)
    write_picture(Picture(deep, "RGB"), tmp_path / "b.png")
    Image.open(tmp_path / "a.png").quantize(9).save(tmp_path / "c.png")
    for crop in (3, 12):
        held = CleanDataset(tmp_path, crop=crop)
        read = CleanDataset(tmp_path, crop=crop, held_bytes=0)
        for index in range(3):
            assert torch.equal(held[index]["truth"], read[index]["truth"])


def test_small_photographs_are_mirrored(folder: Path) -> None:
    sample = CleanDataset(folder, crop=64, shrink=3)[0]
    assert sample["truth"].shape == (3, 64, 64)


def test_only_the_weathers_that_are_asked_for(folder: Path) -> None:
    dataset = CleanDataset(folder, crop=4, samples_per_epoch=20, weathers=["raindrop"])
    assert {dataset[index]["weather"].item() for index in range(20)} == {2}


def test_bytes_and_several_inputs(folder: Path) -> None:
    dataset = CleanDataset([folder / "a.png", folder / "deep"], crop=4, dtype=torch.uint8)
    assert len(dataset) == 2
    assert dataset[1]["truth"].dtype == torch.uint8


def test_what_cannot_be_is_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        CleanDataset(folder / "nowhere")
    (folder / "c.png").write_text("no picture")
    with pytest.raises(DatasetError, match=r"c\.png: is not a picture"):
        CleanDataset(folder)
    with pytest.raises(DatasetError, match=r"c\.png: is not a picture"):
        CleanDataset(folder, held_bytes=0)[1]


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"crop": 0}, "crop must be at least 1"),
        ({"samples_per_epoch": 0}, "samples_per_epoch must be at least 1"),
        ({"shrink": 0.5}, "shrink must be at least 1"),
        ({"weathers": ["sun"]}, "weathers must be some of snow, rain, raindrop"),
        ({"dtype": torch.float64}, "dtype must be"),
    ],
)
def test_wrong_arguments(folder: Path, choices: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        CleanDataset(folder, **choices)


def test_turns_show_some_crops_on_their_side(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None], (60, 60, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "a.png")
    sideways = 0
    for turns in (False, True):
        dataset = CleanDataset(tmp_path, crop=20, samples_per_epoch=40, turns=turns)
        crops = [dataset[index]["truth"][0] for index in range(40)]
        sideways = sum(bool((crop[0] == crop[0, 0]).all()) for crop in crops)
        assert sideways == 0 or turns
    assert 10 <= sideways <= 30


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_recoloring_keeps_black_and_order_of_values(dtype: Any) -> None:
    top = np.iinfo(dtype).max
    values = np.linspace(0, top, 256).astype(dtype)
    pixels = np.stack([values, values[::-1], np.zeros_like(values)], axis=-1)[None]
    seen = set()
    for number in range(60):
        got = recolored(pixels, 0.7, Choices("test", number))
        assert got.dtype == dtype
        assert got.shape == pixels.shape
        black = [c for c in range(3) if not got[..., c].any()]
        rising = [c for c in range(3) if (np.diff(got[0, :, c].astype(int)) >= 0).all()]
        (rising_one,) = set(rising) - set(black)
        assert len(black) == 1
        seen.add((black[0], rising_one))
        assert np.exp(-0.7) * top - 1 <= got[0, -1, rising_one] <= top
        middle = got[0, 128, rising_one] / got[0, -1, rising_one]
        assert 0.5 ** np.exp(0.7) - 0.01 <= middle <= 0.5 ** np.exp(-0.7) + 0.01
    assert len(seen) == 6


def test_recoloring_is_a_pure_function_of_seed_epoch_and_index(folder: Path) -> None:
    plain, one, two = (
        CleanDataset(folder, crop=8, samples_per_epoch=4, recolor=recolor)
        for recolor in (None, 0.5, 0.5)
    )
    assert torch.equal(one[1]["truth"], two[1]["truth"])
    assert one[1]["seed"] == plain[1]["seed"]
    assert not torch.equal(one[1]["truth"], plain[1]["truth"])
    two.set_epoch(1)
    assert not torch.equal(one[1]["truth"], two[1]["truth"])


def test_a_recoloring_out_of_range_is_named(folder: Path) -> None:
    with pytest.raises(ValueError, match="recolor must be 0 to 2 or None, got 3"):
        CleanDataset(folder, recolor=3)
