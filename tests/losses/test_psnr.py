"""PSNR and its loss: worked values, scikit-image, torchmetrics."""

import math

import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from clipweather_fast.losses import psnr, psnr_loss


def test_a_constant_difference() -> None:
    truth = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64)
    assert psnr(truth + 0.1, truth).item() == pytest.approx(20.0)
    assert psnr_loss(truth + 0.1, truth).item() == pytest.approx(0.5)
    assert psnr_loss(truth + 0.01, truth).item() == pytest.approx(0.0, abs=1e-9)


def test_agrees_with_others() -> None:
    y, truth = torch.rand(3, 3, 12, 17), torch.rand(3, 3, 12, 17)
    found = psnr(y, truth, reduction="none")
    assert found.shape == (3,)
    for one, a, b in zip(found.tolist(), y, truth, strict=True):
        other = peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1.0)
        assert one == pytest.approx(other, rel=1e-5)
    theirs = torchmetrics_psnr(y, truth, data_range=1.0, dim=(1, 2, 3))
    assert psnr(y, truth).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_the_mean_is_of_decibels_not_of_errors() -> None:
    truth = torch.zeros(2, 1, 4, 4)
    y = torch.stack([torch.full((1, 4, 4), 0.1), torch.full((1, 4, 4), 0.01)])
    assert psnr(y, truth).item() == pytest.approx(30.0, rel=1e-5)


def test_equal_pictures_give_the_floor_and_no_gradient() -> None:
    y = torch.rand(1, 3, 8, 8, requires_grad=True)
    found = psnr(y, y.detach())
    assert found.item() == pytest.approx(80.0)
    found.backward()
    assert y.grad is not None
    assert torch.equal(y.grad, torch.zeros_like(y))
    assert psnr(y, y.detach(), floor=1e-4).item() == pytest.approx(40.0)


def test_the_gradient_is_the_error_s_over_the_error() -> None:
    y = torch.rand(1, 3, 5, 6, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(1, 3, 5, 6, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: psnr_loss(y, truth), y)
    (grad,) = torch.autograd.grad(psnr_loss(y, truth), y)
    error = (y - truth).square().mean()
    (expected,) = torch.autograd.grad(error, y)
    torch.testing.assert_close(grad, expected * 10 / math.log(10) / error.detach() / 40)


def test_wrong_arguments_are_named() -> None:
    y = torch.rand(1, 3, 4, 4)
    with pytest.raises(ValueError, match=r"reduction must be one of .*got 'sum'"):
        psnr(y, y, reduction="sum")
    with pytest.raises(ValueError, match="floor must be positive"):
        psnr(y, y, floor=0.0)
    with pytest.raises(ValueError, match="psnr: y and truth must both"):
        psnr(y, y[:, :1])
