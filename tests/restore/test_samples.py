"""Results on their way out: written as PyTorch's steps write them, and what is bad is seen."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipweather_fast import Restorer, use_backend
from clipweather_fast.ops import _native
from clipweather_fast.restore.samples import _native_stores, prepared, store, store_finite
from small_networks import photograph, small

needs_native = pytest.mark.skipif(
    _native.why_not_loaded() is not None, reason=str(_native.why_not_loaded())
)


def results(height: int, width: int) -> Tensor:
    """Channels-last, beyond both ends, with halves between levels and both zeros."""
    torch.manual_seed(0)
    y = torch.rand(1, height, width, 3) * 1.6 - 0.3
    y.view(-1)[::3] = (torch.arange(len(y.view(-1)[::3])) % 255 + 0.5) / 255
    y.view(-1)[:2] = torch.tensor([-0.0, 1.0])
    return y.permute(0, 3, 1, 2)


def rooms(height: int, width: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Memory for a picture, laid out in every way."""
    n = 1, 3, height, width
    return {
        "planes": torch.empty(n, dtype=dtype),
        "pixels": torch.empty(n, dtype=dtype, memory_format=torch.channels_last),
        "turned": torch.empty(1, 3, width, height, dtype=dtype).mT,
        "part": torch.empty(1, 3, height + 2, width + 3, dtype=dtype)[:, :, 1:-1, 2:-1],
    }


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 33), (17, 200)], ids=str)
def test_it_stores_what_pytorchs_steps_do(size: tuple[int, int], dtype: torch.dtype) -> None:
    whole = results(size[0] + 3, size[1] + 5)
    for restored in (results(*size), whole[:, :, : size[0], : size[1]]):
        for name, out in rooms(*size, dtype).items():
            expected = torch.empty(out.shape, dtype=dtype)
            store(restored, expected)
            assert _native_stores(restored, out), name
            assert store_finite(restored, out)
            assert torch.equal(out, expected), name
            assert torch.equal(out.float().signbit(), expected.float().signbit())


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8, torch.float64, torch.uint16])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_seen_anywhere(bad: float, dtype: torch.dtype, backend: str) -> None:
    for place in (0, 40, 3 * 19 * 21 - 1):
        restored = results(19, 21)
        out = torch.empty(restored.shape, dtype=dtype)
        with use_backend(backend):
            assert store_finite(restored, out)
            values = restored.permute(0, 2, 3, 1).flatten().clone()
            values[place] = bad
            broken = values.view(1, 19, 21, 3).permute(0, 3, 1, 2)
            assert not store_finite(broken, out)


def test_large_numbers_are_finite() -> None:
    restored = torch.full((1, 4, 4, 3), 3e38).permute(0, 3, 1, 2)
    out = torch.empty(1, 3, 4, 4)
    assert store_finite(restored, out)  # though their sum is not
    assert torch.equal(out, torch.ones(1, 3, 4, 4))


def test_a_layout_may_stay() -> None:
    device, image = torch.device("cpu"), torch.rand(1, 3, 4, 5)
    assert prepared(image, device, any_layout=True).data_ptr() == image.data_ptr()
    assert prepared(image, device).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_restorer_leaves_its_input_and_what_it_gave_alone(layout: torch.memory_format) -> None:
    """Also once passes are replayed."""
    restorer = Restorer(small(prior_encoder="none"), device="cpu", dtype="float32")
    image = photograph(70, 90).contiguous(memory_format=layout)
    before = image.clone()
    first = restorer(image)
    kept = first.clone()
    for _ in range(8):
        again = restorer(image)
        assert torch.equal(again, kept)
        again.zero_()
        restorer(1 - image)
    assert torch.equal(first, kept)
    assert torch.equal(image, before)
