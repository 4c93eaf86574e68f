"""Samples of pairs: values, crops, mirrors, small pictures, repeatability."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from clipweather_fast.data import DatasetError, Pair, PairDataset, find_pairs, to_unit_range
from clipweather_fast.restore import Picture, write_picture
from small_dataset import HEIGHT, WIDTH, noise, put


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    for name in ("a", "b", "c"):
        put(tmp_path, f"snow/input/{name}.png", f"snow/gt/{name}.png")
    return find_pairs(tmp_path)


def as_pixels(tensor: torch.Tensor) -> NDArray[Any]:
    """(3, H, W) in [0, 1] as (H, W, 3) in 0 to 255."""
    pixels: NDArray[Any] = (tensor.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    return pixels


def variants(pixels: NDArray[Any]) -> list[NDArray[Any]]:
    return [pixels, pixels[::-1], pixels[:, ::-1], pixels[::-1, ::-1]]


def test_a_whole_pair_has_the_files_values(pairs: list[Pair]) -> None:
    dataset = PairDataset(pairs, crop=None)
    assert len(dataset) == 3
    for index, pair in enumerate(pairs):
        sample = dataset[index]
        assert sorted(sample) == ["image", "index", "truth", "weather"]
        for name, path in (("image", pair.image), ("truth", pair.truth)):
            assert sample[name].dtype == torch.float32
            assert sample[name].shape == (3, HEIGHT, WIDTH)
            expected = torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1) / 255
            assert torch.equal(sample[name], expected)
        assert (sample["weather"].item(), sample["index"].item()) == (0, index)
        assert sample["weather"].dtype == sample["index"].dtype == torch.int64
    assert torch.equal(dataset[-1]["image"], dataset[2]["image"])
    with pytest.raises(IndexError):
        dataset[3]


def test_image_and_truth_are_cropped_and_mirrored_alike(tmp_path: Path) -> None:
    # The truth is the picture with other colours, so every place can be recognised.
    pixels = noise(1)
    for kind, values in (("input", pixels), ("gt", 255 - pixels)):
        (tmp_path / kind).mkdir()
        Image.fromarray(values).save(tmp_path / kind / "a.png")
    dataset = PairDataset(find_pairs(tmp_path), crop=12)
    seen = set()
    for epoch in range(60):
        dataset.set_epoch(epoch)
        sample = dataset[0]
        crop = as_pixels(sample["image"])
        assert (as_pixels(sample["truth"]) == 255 - crop).all()
        places = [
            (top, left, number)
            for top in range(HEIGHT - 11)
            for left in range(WIDTH - 11)
            for number, variant in enumerate(variants(pixels[top : top + 12, left : left + 12]))
            if (variant == crop).all()
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert {top for top, _, _ in seen} == set(range(HEIGHT - 11))
    assert {number for _, _, number in seen} == {0, 1, 2, 3}
    assert len({left for _, left, _ in seen}) >= 12


def test_without_flips_nothing_is_mirrored(pairs: list[Pair]) -> None:
    dataset = PairDataset(pairs, crop=HEIGHT, flips=False)
    whole = np.array(Image.open(pairs[0].image))
    for epoch in range(8):
        dataset.set_epoch(epoch)
        crop = as_pixels(dataset[0]["image"])
        assert any(
            (whole[:, left : left + HEIGHT] == crop).all() for left in range(WIDTH - HEIGHT + 1)
        )


def test_a_sample_depends_on_seed_epoch_and_index_alone(pairs: list[Pair]) -> None:
    dataset = PairDataset(pairs, crop=8, seed=3)
    first = [dataset[index]["image"] for index in range(3)]
    dataset.set_epoch(1)
    other = [dataset[index]["image"] for index in (2, 0, 1)]
    assert not all(torch.equal(a, b) for a, b in zip(first, other[1:] + other[:1], strict=True))
    dataset.set_epoch(0)
    again = PairDataset(pairs, crop=8, seed=3)
    for index in (2, 0, 1):
        assert torch.equal(dataset[index]["image"], first[index])
        assert torch.equal(again[index]["image"], first[index])
    unlike = PairDataset(pairs, crop=8, seed=4)
    assert not all(torch.equal(unlike[i]["image"], first[i]) for i in range(3))


def test_workers_that_outlive_an_epoch_see_the_next_one(pairs: list[Pair]) -> None:
    dataset = PairDataset(pairs, crop=8)
    loader = DataLoader(dataset, batch_size=2, num_workers=2, persistent_workers=True)
    alone = PairDataset(pairs, crop=8)
    for epoch in (0, 5):
        dataset.set_epoch(epoch)
        alone.set_epoch(epoch)
        for batch in loader:
            for row, index in enumerate(batch["index"].tolist()):
                assert torch.equal(batch["image"][row], alone[index]["image"])
                assert torch.equal(batch["truth"][row], alone[index]["truth"])
    del loader


def test_bytes_become_the_same_floats(pairs: list[Pair]) -> None:
    floats = PairDataset(pairs, crop=16)
    loader = DataLoader(PairDataset(pairs, crop=16, dtype=torch.uint8), batch_size=3)
    (batch,) = loader
    assert batch["image"].dtype == torch.uint8
    moved = to_unit_range(batch, "cpu")
    for index in range(3):
        for name in ("image", "truth"):
            assert torch.equal(moved[name][index], floats[index][name])
    assert torch.equal(moved["weather"], batch["weather"])


@pytest.mark.parametrize("small", ["mirror", "resize"])
def test_pictures_smaller_than_the_crop(tmp_path: Path, small: Any) -> None:
    put(tmp_path, "input/a.png", "gt/a.png", seed=1, height=5, width=40)
    dataset = PairDataset(find_pairs(tmp_path), crop=32, flips=False, small=small)
    sample = dataset[0]
    assert sample["image"].shape == (3, 32, 32)
    assert torch.equal(sample["image"], sample["truth"])
    crop = as_pixels(sample["image"])
    if small == "mirror":
        assert (crop[:5] == crop[8:13]).all()  # five rows there and back are eight
        assert (crop[5:9] == crop[3::-1]).all()
    else:
        assert crop[0].std() > 0
        assert (np.abs(np.diff(crop.astype(int), axis=0)).max()) < 255


def test_a_picture_of_one_pixel_fills_the_crop(tmp_path: Path) -> None:
    put(tmp_path, "input/a.png", "gt/a.png", seed=1, height=1, width=1)
    image = PairDataset(find_pairs(tmp_path), crop=4)[0]["image"]
    assert torch.equal(image, image[:, :1, :1].expand(3, 4, 4))


def test_sixteen_bits_and_gray_keep_their_values(tmp_path: Path) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
    for kind in ("input", "gt"):
        (tmp_path / kind).mkdir()
    write_picture(Picture(deep, "RGB"), tmp_path / "input/a.png")
    gray = Image.fromarray(noise(2)).convert("L")
    gray.save(tmp_path / "gt/a.png")
    pairs = find_pairs(tmp_path)
    sample = PairDataset(pairs, crop=None)[0]
    exact = torch.from_numpy(deep.astype(np.float32)).permute(2, 0, 1) / 65535
    assert torch.equal(sample["image"], exact)
    assert torch.equal(sample["truth"][0], torch.from_numpy(np.array(gray)) / 255)
    assert torch.equal(sample["truth"][0], sample["truth"][2])
    rounded = PairDataset(pairs, crop=None, dtype=torch.uint8)[0]["image"]
    assert (rounded.float() / 255 - exact).abs().max() <= 0.5 / 255 + 1e-6


def test_bad_files_and_unequal_sizes_are_named(tmp_path: Path) -> None:
    put(tmp_path, "input/a.png", "gt/a.png", "input/b.png", "input/c.png", "input/d.png")
    put(tmp_path, "gt/b.png", height=HEIGHT + 1)
    (tmp_path / "gt/c.png").write_text("no picture")
    whole = (tmp_path / "gt/a.png").read_bytes()
    (tmp_path / "gt/d.png").write_bytes(whole[: len(whole) // 2])
    dataset = PairDataset(find_pairs(tmp_path), crop=8)
    dataset[0]
    with pytest.raises(
        DatasetError, match=r"input/b.png: has 28 x 20 pixels, .*gt/b.png.* 28 x 21"
    ):
        dataset[1]
    with pytest.raises(DatasetError, match=r"gt/c.png: is not a picture"):
        dataset[2]
    with pytest.raises(DatasetError, match=r"gt/d.png: cannot be decoded"):
        PairDataset(dataset.pairs, crop=None)[3]


def test_the_message_survives_a_worker_process(tmp_path: Path) -> None:
    put(tmp_path, "input/a.png", "gt/a.png")
    (tmp_path / "gt/a.png").write_text("no picture")
    loader = DataLoader(PairDataset(find_pairs(tmp_path), crop=8), num_workers=1)
    with pytest.raises(DatasetError, match=r"gt/a.png: is not a picture"):
        next(iter(loader))


def test_a_copy_has_an_epoch_of_its_own(pairs: list[Pair]) -> None:
    dataset = PairDataset(pairs, crop=8)
    dataset.set_epoch(4)
    clone = copy.deepcopy(dataset)
    dataset.set_epoch(5)
    assert (clone.epoch, dataset.epoch) == (4, 5)
    dataset.set_epoch(4)
    assert torch.equal(clone[1]["image"], dataset[1]["image"])


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"crop": 0}, "crop must be at least 1 or None, got 0"),
        ({"small": "crop"}, "small must be 'mirror' or 'resize'"),
        ({"dtype": torch.float16}, "dtype must be torch.float32 or torch.uint8"),
    ],
)
def test_wrong_arguments(pairs: list[Pair], choices: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PairDataset(pairs, **choices)
    with pytest.raises(ValueError, match="there are no pairs"):
        PairDataset([])
