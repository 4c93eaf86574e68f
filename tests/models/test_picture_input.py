"""The native pass over a picture that comes in: PyTorch's steps, bit for bit, in any layout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipweather_fast.models import _frozen
from clipweather_fast.models._padding import padded_length
from clipweather_fast.models._picture_input import network_input, write_network_input
from small_networks import photograph, prior_of, small

pytestmark = pytest.mark.skipif(
    not _frozen.forms_available(), reason=str(_frozen._why_not(torch.float32))
)

#: One of each way to lay out a picture (N, 3, H, W).
LAYOUTS = {
    "planes": lambda x: x,
    "pixels": lambda x: x.contiguous(memory_format=torch.channels_last),
    "every second row": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "every second column": lambda x: x.repeat_interleave(2, 3)[:, :, :, ::2],
    "pixels of four": lambda x: (
        torch.cat([x, x], 1).permute(0, 2, 3, 1)[..., :3].permute(0, 3, 1, 2)
    ),
    "turned": lambda x: x.mT.contiguous().mT,
    "gray": lambda x: x[:, :1].expand(-1, 3, -1, -1),
}


def written(image: Tensor, multiple: int, minimum: int) -> Tensor:
    rows, columns = (padded_length(side, multiple, minimum) for side in image.shape[2:])
    out = torch.full((image.shape[0], rows, columns, 3), torch.nan).permute(0, 3, 1, 2)
    write_network_input(image, out)
    return out


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "size", [(64, 64), (61, 100), (30, 200), (1, 1), (1, 33), (40, 2), (33, 64), (64, 47)], ids=str
)
def test_it_writes_what_pytorchs_steps_give(size: tuple[int, int], layout: str) -> None:
    torch.manual_seed(0)
    image = LAYOUTS[layout](torch.rand(2, 3, *size))
    before = image.clone()
    expected = network_input(image, 32, 64, torch.float32)
    assert torch.equal(written(image, 32, 64), expected)
    assert torch.equal(image, before)


def test_what_is_no_number_stays_where_it_is() -> None:
    image = torch.rand(1, 3, 20, 20)
    image[0, 1, 3, 18], image[0, 2, 5, 5] = torch.nan, -torch.inf
    expected = network_input(image, 32, 32, torch.float32)
    assert torch.allclose(written(image, 32, 32), expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_network_gives_the_same_for_every_layout(layout: str) -> None:
    network = small()
    image = photograph(70, 90, n=2)
    image = LAYOUTS["gray"](image) if layout == "gray" else image
    with torch.no_grad():
        expected = network(image.contiguous(), prior_of(network))
        got = network(LAYOUTS[layout](image), prior_of(network))
    assert torch.equal(got, expected)
    assert got.shape == image.shape
    assert got.is_contiguous(memory_format=torch.channels_last)


def test_other_dtypes_are_normalised_before_they_are_cast() -> None:
    network, image = small(), photograph(70, 90)
    for dtype in (torch.float64, torch.bfloat16, torch.float16):
        with torch.no_grad():
            got = network(image.to(dtype), prior_of(network))
            steps = network_input(image.to(dtype), 64, 64, torch.float32)
            assert torch.equal(got, network((steps + 1) / 2, prior_of(network))[:, :, :70, :90])
