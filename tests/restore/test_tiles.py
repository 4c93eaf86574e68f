"""Tiles cover a picture, blend without a seam, and change nothing where nothing looks far."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clipweather_fast.restore import Restorer
from clipweather_fast.restore.tiles import Span, smallest_tile, spans
from known_networks import Local, Same, tiny_network

PHOTOGRAPH = Path(__file__).parents[2] / "examples" / "coffee.jpg"


@given(
    length=st.integers(1, 5000),
    tile=st.integers(1, 900),
    overlap=st.integers(0, 200),
    step=st.sampled_from([1, 8, 16, 64]),
)
def test_spans_cover_the_axis_and_only_neighbours_overlap(
    length: int, tile: int, overlap: int, step: int
) -> None:
    found = spans(length, tile, overlap, step)
    assert found[0].begin == 0
    assert found[-1].end == length
    largest = max(tile // step * step, smallest_tile(overlap, step))
    for span in found:
        assert span.begin % step == 0
        assert 0 < span.end - span.begin <= max(largest, tile if len(found) == 1 else 0)
    for one, other in pairwise(found):
        shared = one.end - other.begin
        assert shared == one.after == other.before
        assert overlap <= shared < overlap + step
    for one, third in zip(found, found[2:], strict=False):
        assert one.end <= third.begin
    assert found[0].before == found[-1].after == 0


def test_tiles_are_of_even_size() -> None:
    # Three tiles of 512 and a sliver of 128 would do as well.
    found = spans(1500, 512, 32, 64)
    assert found == [Span(0, 448, 0, 64), Span(384, 832, 64, 64), Span(768, 1216, 64, 64), Span(1152, 1500, 64, 0)]  # fmt: skip  # noqa: E501


@pytest.mark.parametrize("tile", [64, 96, 200])
@pytest.mark.parametrize("size", [(150, 217), (64, 300), (201, 64)])
def test_a_network_that_looks_no_further_than_a_quarter_of_the_overlap_gives_the_same_picture(
    size: tuple[int, int], tile: int
) -> None:
    picture = torch.rand(3, *size)
    whole = Restorer(Local(radius=8), tile=None)(picture)
    tiled = Restorer(Local(radius=8), tile=tile, tile_overlap=32)(picture)
    assert torch.equal(tiled, whole)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_that_tensors_have_by_default_does_not_matter(
    dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    picture = torch.rand(3, 150, 217)
    restorer = Restorer(Local(radius=20), tile=64, tile_overlap=32)
    expected = restorer(picture)
    default_dtype(dtype)
    assert torch.equal(restorer(picture), expected)


def test_a_network_that_looks_further_does_not() -> None:
    picture = torch.rand(3, 70, 150)
    whole, tiled = (Restorer(Local(radius=20), tile=tile)(picture) for tile in (None, 64))
    assert not torch.equal(tiled, whole)


def test_integers_in_tiles_equal_integers_whole() -> None:
    for dtype in (np.uint8, np.uint16):
        picture = np.random.randint(0, np.iinfo(dtype).max, (150, 230, 3), dtype=dtype)
        tiled = Restorer(Same(), dtype="float32", tile=64)(picture)
        np.testing.assert_array_equal(tiled, picture)


def mean_steps(picture: NDArray[np.float32], axis: int) -> NDArray[np.float32]:
    """The step between neighbouring lines, averaged along 32 pixels of a line: what eyes follow."""
    step = np.moveaxis(np.diff(picture, axis=axis), axis, 0)
    pieces = step.shape[1] // 32
    means = step[:, : pieces * 32].reshape(step.shape[0], pieces, 32, 3).mean(axis=2)
    return np.abs(means).max(axis=(1, 2))


def seam(tiled: NDArray[np.float32], whole: NDArray[np.float32]) -> float:
    """The largest mean step of the difference, in typical mean steps of the whole picture."""
    return max(
        float(mean_steps(tiled - whole, axis).max() / np.median(mean_steps(whole, axis)))
        for axis in (0, 1)
    )


def separated(restorer: Restorer) -> Restorer:
    """Its tiles attend to themselves only, as where there is no memory for more."""
    restorer._engine._joins = False
    return restorer


def test_a_network_with_attention_shows_no_seam() -> None:
    network = tiny_network()
    photograph = np.asarray(Image.open(PHOTOGRAPH), np.float32)[:320, :448] / 255
    whole = Restorer(network, tile=None)(photograph)
    joint = Restorer(network, tile=192)
    assert seam(joint(photograph), whole) <= 0.1
    assert joint.report.tile is not None
    # Tiles that are put side by side, each for itself, do show one.
    cut = separated(Restorer(network, tile=192))
    cut._engine.overlap = 0
    assert seam(cut(photograph), whole) >= 0.5


@pytest.mark.parametrize("picture", ["rain/input/chelsea.jpg", "snow/input/rocket.jpg"])
def test_with_the_weights_in_the_package_tiles_are_the_whole(picture: str) -> None:
    path = PHOTOGRAPH.parent / "pairs" / picture
    seen = np.asarray(Image.open(path), np.float32) / 255
    whole = Restorer(dtype="float32", device="cpu", tile=None)(seen)
    joint = Restorer(dtype="float32", device="cpu", tile=256)
    np.testing.assert_allclose(joint(seen), whole, rtol=0, atol=1e-5)
    assert joint.report.tile == 256
    alone = separated(Restorer(dtype="float32", device="cpu", tile=256))(seen)
    assert seam(alone, whole) >= 0.2


def test_what_lies_in_memory_is_bounded_by_the_tile() -> None:
    network = Same()
    Restorer(network, tile=128)(np.zeros((1000, 700, 3), np.uint8))
    assert max(h * w for _, _, h, w in network.shapes) <= 128 * 128
