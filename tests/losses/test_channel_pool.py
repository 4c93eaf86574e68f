"""Pooling along the channels against PyTorch's, and its adjoint."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.losses._channel_pool import ChannelPool

RATIOS = [(128, 80), (256, 80), (640, 256), (2560, 1024), (1280, 640)]
RATIOS += [(7, 3), (5, 1), (6, 6), (9, 8)]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


def images(channels: int, layout: torch.memory_format, dtype: torch.dtype) -> Tensor:
    return torch.randn(2, channels, 4, 3, dtype=dtype).contiguous(memory_format=layout)


@pytest.mark.parametrize(("inputs", "outputs"), RATIOS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_is_pytorch_s(
    inputs: int, outputs: int, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    x = images(inputs, layout, dtype)
    found = ChannelPool(inputs, outputs, x)(x)
    expected = F.adaptive_avg_pool3d(x[:, None], (outputs, 4, 3))[:, 0]
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("inputs", "outputs"), RATIOS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_spread_is_the_adjoint(inputs: int, outputs: int, layout: torch.memory_format) -> None:
    x, grad = (images(c, layout, torch.float64) for c in (inputs, outputs))
    pool = ChannelPool(inputs, outputs, x)
    torch.testing.assert_close((pool(x) * grad).sum(), (x * pool.spread(grad)).sum())


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_piece_of_an_image_is_pooled_as_it_lies(layout: torch.memory_format) -> None:
    x = images(10, layout, torch.float32)
    pool = ChannelPool(10, 4, x)
    torch.testing.assert_close(pool(x[1:, :, 1:3]), pool(x)[1:, :, 1:3])
