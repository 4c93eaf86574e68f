"""The order of samples: complete, shared out, and to be taken up in the middle."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipweather_fast.data import EpochSampler
from clipweather_fast.data.choices import Choices


def order(length: int, epoch: int = 0, start: int = 0, **choices: int) -> list[int]:
    sampler = EpochSampler(length, **choices)
    sampler.set_epoch(epoch, start)
    assert len(sampler) == len(list(sampler))
    return list(sampler)


def test_every_index_once_and_another_order_each_epoch() -> None:
    first, second = order(50), order(50, epoch=1)
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first == order(50)
    assert first != order(50, seed=1)


def test_without_shuffling_samples_come_as_they_are() -> None:
    assert list(EpochSampler(5, shuffle=False)) == [0, 1, 2, 3, 4]


@given(
    length=st.integers(1, 40), world=st.integers(1, 5), start=st.integers(0, 40), seed=st.integers()
)
def test_processes_share_what_one_would_do(length: int, world: int, start: int, seed: int) -> None:
    start = min(start, length)
    whole = order(length, start=start, seed=seed)
    parts = [order(length, start=start, seed=seed, rank=r, world=world) for r in range(world)]
    assert len({len(part) for part in parts}) == 1
    dealt = [index for turn in zip(*parts, strict=True) for index in turn]
    assert dealt[: len(whole)] == whole
    assert len(dealt) - len(whole) < world
    assert whole == order(length, seed=seed)[start:]


def test_a_new_epoch_begins_at_its_beginning() -> None:
    sampler = EpochSampler(10)
    sampler.set_epoch(0, start=7)
    assert len(sampler) == 3
    sampler.set_epoch(1)
    assert (len(sampler), sampler.start) == (10, 0)


def test_wrong_arguments() -> None:
    with pytest.raises(ValueError, match="length must be at least 1, got 0"):
        EpochSampler(0)
    with pytest.raises(ValueError, match="rank must be 0 to world - 1 = 1, got 2"):
        EpochSampler(4, rank=2, world=2)
    with pytest.raises(ValueError, match="start must be 0 to the 4 samples"):
        EpochSampler(4).set_epoch(0, start=5)


def test_choices_are_fixed_for_ever() -> None:
    """A change here would give every interrupted training other crops than it began with."""
    choices = Choices("pair", 0, 1, 2)
    assert [choices.below(100) for _ in range(3)] == [38, 81, 95]
    assert choices.fraction() == 0.545642205256655
    assert Choices("pair", -1).number() != Choices("clean", -1).number()


@given(key=st.integers(), count=st.integers(1, 1 << 40))
def test_choices_keep_to_their_range(key: int, count: int) -> None:
    choices = Choices("pair", key)
    assert 0 <= choices.below(count) < count
    assert 0 <= choices.fraction() < 1
    assert 0 <= choices.number(5) < 32


def test_choices_are_even() -> None:
    counts = [0] * 7
    for index in range(7000):
        counts[Choices("pair", 0, 0, index).below(7)] += 1
    assert all(880 < count < 1120 for count in counts)
