"""Smooth L1 by its closed form."""

import pytest
import torch

from clipweather_fast.losses import smooth_l1


def test_squares_of_small_differences_and_absolute_values_of_large_ones() -> None:
    truth = torch.zeros(1, 1, 1, 4)
    y = torch.tensor([0.5, -0.5, 3.0, 0.0]).view(1, 1, 1, 4)
    assert smooth_l1(y, truth).item() == pytest.approx((0.125 + 0.125 + 2.5) / 4)
    assert smooth_l1(y, truth, beta=0.25).item() == pytest.approx((0.375 + 0.375 + 2.875) / 4)


def test_gradients() -> None:
    y = torch.rand(2, 3, 4, 5, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    for beta in (1.0, 0.1):
        assert torch.autograd.gradcheck(lambda y, beta=beta: smooth_l1(y, truth, beta), y)


def test_sixteen_bits_are_widened_first() -> None:
    truth = torch.rand(2, 3, 8, 8)
    y = truth.bfloat16()
    found = smooth_l1(y, truth)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(smooth_l1(y.float(), truth).item())


def test_wrong_arguments_are_named() -> None:
    y = torch.rand(1, 3, 4, 4)
    with pytest.raises(TypeError, match=r"smooth_l1: truth must .*torch.uint8; divide"):
        smooth_l1(y, torch.zeros(1, 3, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got \(1, 3, 4, 4\) and \(1, 3, 4, 5\)"):
        smooth_l1(y, torch.rand(1, 3, 4, 5))  # would broadcast nowhere, but (1, 3, 1, 4) would
    with pytest.raises(ValueError, match=r"got \(1, 3, 4, 4\) and \(1, 3, 1, 4\)"):
        smooth_l1(y, torch.rand(1, 3, 1, 4))
    with pytest.raises(ValueError, match="not empty"):
        smooth_l1(y[:0], y[:0])
    with pytest.raises(ValueError, match="beta must be positive, got 0"):
        smooth_l1(y, y, beta=0.0)
