"""Pooling along the channels against PyTorch's, and its adjoint."""

import pytest
import torch
import torch.nn.functional as F

from clipweather_fast.losses._channel_pool import pooled, spread

RATIOS = [
    (128, 80),
    (256, 80),
    (640, 256),
    (2560, 1024),
    (1280, 640),
    (7, 3),
    (5, 1),
    (6, 6),
    (9, 8),
]
LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.mark.parametrize(("inputs", "outputs"), RATIOS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_is_pytorch_s(inputs: int, outputs: int, layout: torch.memory_format) -> None:
    x = torch.randn(2, inputs, 3, 2, dtype=torch.float64).contiguous(memory_format=layout)
    found = pooled(x, outputs)
    expected = F.adaptive_avg_pool3d(x[:, None], (outputs, 3, 2))[:, 0]
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=layout)


@pytest.mark.parametrize(("inputs", "outputs"), RATIOS)
def test_spread_is_the_adjoint(inputs: int, outputs: int) -> None:
    x = torch.randn(2, inputs, 3, 2, dtype=torch.float64)
    grad = torch.randn(2, outputs, 3, 2, dtype=torch.float64)
    forward, backward = (pooled(x, outputs) * grad).sum(), (x * spread(grad, inputs)).sum()
    torch.testing.assert_close(forward, backward)


def test_rows_of_an_image_are_pooled_as_they_lie() -> None:
    for layout in LAYOUTS:
        x = torch.randn(2, 10, 6, 5).contiguous(memory_format=layout)
        torch.testing.assert_close(pooled(x[1:, :, 2:4], 4), pooled(x, 4)[1:, :, 2:4])
