"""CutMix: labels are areas, image and truth get the same box, one seed one result."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipweather_fast.data import cutmix


def batch(count: int = 4, height: int = 12, width: int = 17) -> dict[str, Any]:
    """Pictures of one colour each, so that every pixel shows whose it is."""
    colours = torch.arange(count, dtype=torch.float32)[:, None, None, None]
    image = colours.expand(count, 3, height, width).clone()
    weather = torch.tensor([0, 1, 2, -1, 1, 0])[:count]
    return {"image": image, "truth": image + 10, "weather": weather, "index": torch.arange(count)}


@given(
    seed=st.integers(0, 1 << 40),
    alpha=st.sampled_from([0.2, 1.0, 4.0]),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
)
def test_labels_are_the_areas_to_the_pixel(
    seed: int, alpha: float, height: int, width: int
) -> None:
    given_batch = batch(4, height, width)
    mixed = cutmix(given_batch, 1.0, alpha, seed)
    assert torch.equal(mixed["truth"], mixed["image"] + 10)
    for row in range(4):
        owners = mixed["image"][row, 0].long()
        expected = torch.zeros(3)
        for owner, weather in enumerate(given_batch["weather"].tolist()):
            if weather >= 0:
                expected[weather] += (owners == owner).sum() / owners.numel()
        torch.testing.assert_close(mixed["labels"][row], expected)
        foreign = owners != row
        if foreign.any():  # what was pasted is one rectangle, of one partner
            rows, columns = foreign.any(dim=1), foreign.any(dim=0)
            assert torch.equal(foreign, rows[:, None] & columns)
            assert owners[foreign].unique().numel() == 1


def test_the_box_is_the_same_in_the_whole_batch() -> None:
    mixed = cutmix(batch(6), 1.0, seed=2)
    foreign = mixed["image"][:, 0] != torch.arange(6.0)[:, None, None]
    boxes = {tuple(mask.flatten().tolist()) for mask in foreign if mask.any()}
    assert len(boxes) == 1


def test_one_seed_one_result_and_nothing_given_is_changed() -> None:
    given_batch = batch()
    kept = {name: value.clone() for name, value in given_batch.items()}
    results = [cutmix(given_batch, 1.0, seed=seed)["image"] for seed in (1, 1, 2)]
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert sorted(given_batch) == sorted(kept)
    for name, value in kept.items():
        assert torch.equal(given_batch[name], value)
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    cutmix(given_batch, 1.0)
    assert torch.equal(torch.rand(1), before)


def test_unmixed_batches_get_labels_too() -> None:
    mixed = cutmix(batch(), 0.0)
    expected = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]])
    assert torch.equal(mixed["labels"], expected)
    assert torch.equal(mixed["image"], batch()["image"])
    soft = torch.full((4, 3), 0.25)
    assert torch.equal(cutmix(batch() | {"labels": soft}, 0.0)["labels"], soft)


def test_the_probability_and_the_areas_are_as_asked() -> None:
    count, areas = 0, []
    for seed in range(400):
        image = cutmix(batch(4, 40, 40), 0.5, seed=seed)["image"]
        foreign = image[:, 0] != torch.arange(4.0)[:, None, None]
        if foreign.any():
            count += 1
            areas.append(foreign.float().mean(dim=(1, 2)).max().item())
    # One permutation of four in 24 moves nothing; boxes of no pixel are rare.
    assert 140 < count < 240
    assert 0.2 < sum(areas) / len(areas) < 0.45  # a half, less what the edges cut


def test_truths_alone_and_empty_batches() -> None:
    mixed = cutmix({"truth": batch()["truth"], "weather": batch()["weather"]}, 1.0, seed=1)
    assert "image" not in mixed
    assert mixed["labels"].shape == (4, 3)
    assert cutmix(batch(0), 1.0)["labels"].shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "choices", "words"),
    [
        ({}, {"probability": 1.5}, r"probability must be in \[0, 1\], got 1.5"),
        ({}, {"alpha": 0}, "alpha must be positive, got 0"),
        ({"truth": torch.zeros(4, 3, 2, 2)}, {}, "both of one size"),
    ],
)
def test_wrong_arguments(changes: dict[str, Any], choices: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cutmix(batch() | changes, **choices)
    with pytest.raises(ValueError, match="needs labels or weather"):
        cutmix({"image": batch()["image"]})
