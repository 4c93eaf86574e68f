"""Padding: what it repeats, and that it changes nothing inside."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from clipweather_fast.models._padding import padded, padded_length
from small_networks import photograph, prior_of, small


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    multiple=st.sampled_from([1, 3, 16]),
    minimum=st.integers(1, 20),
)
def test_mirrored_where_the_side_is_long_enough(
    height: int, width: int, multiple: int, minimum: int
) -> None:
    image = torch.arange(2.0 * height * width).view(1, 2, height, width)
    expected = image
    for side, length in ((1, height), (0, width)):
        more = padded_length(length, multiple, minimum) - length
        border = (0, more, 0, 0) if side == 0 else (0, 0, 0, more)
        expected = F.pad(expected, border, "reflect" if more < length else "replicate")
    got = padded(image, multiple, minimum)
    assert torch.equal(got, expected)
    assert got.shape[2] % multiple == got.shape[3] % multiple == 0
    assert min(got.shape[2:]) >= minimum


def test_nothing_missing_is_no_copy() -> None:
    image = photograph(64, 128)
    assert padded(image, 64, 64) is image


@pytest.mark.parametrize("architecture", ["ClipWeather", "TransWeather"])
@pytest.mark.parametrize("size", [(1, 70), (63, 65), (100, 128)], ids=str)
def test_a_padded_and_cropped_restoration_is_that_of_the_padded_picture(
    architecture: str, size: tuple[int, int]
) -> None:
    network, image = small(architecture), photograph(*size)
    whole = padded(image, network.size_multiple, network.minimum_size)
    with torch.no_grad():
        expected = network(whole, prior_of(network))[:, :, : size[0], : size[1]]
        assert torch.equal(network(image, prior_of(network)), expected)
