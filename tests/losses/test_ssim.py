"""SSIM and its loss: scikit-image, torchmetrics, worked values."""

import importlib

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from clipweather_fast.losses import ssim, ssim_loss


def pictures(n: int = 2, h: int = 24, w: int = 31) -> tuple[Tensor, Tensor]:
    """Smooth pictures and disturbed ones, some values outside [0, 1]."""
    truth = torch.nn.functional.interpolate(torch.rand(n, 3, 4, 5), (h, w), mode="bilinear")
    return truth + 0.1 * torch.randn(n, 3, h, w), truth


def test_agrees_with_others() -> None:
    y, truth = pictures()
    found = ssim(y, truth, reduction="none")
    assert found.shape == (2,)
    for one, a, b in zip(found.tolist(), y, truth, strict=True):
        other = structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert one == pytest.approx(other, abs=2e-5)
    # Releases differ in whether windows across the border count: compare those inside.
    _, theirs = structural_similarity_index_measure(
        y, truth, data_range=1.0, return_full_image=True
    )
    inside = theirs[..., 5:-5, 5:-5].mean()
    assert ssim(y, truth).item() == pytest.approx(inside.item(), abs=2e-5)


def test_long_sides_are_blurred_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution where a matrix would be too large; the same values and gradients."""
    y, truth = pictures()
    y.requires_grad_()
    first = ssim(y, truth)
    (gradient,) = torch.autograd.grad(first, y)
    monkeypatch.setattr(
        importlib.import_module("clipweather_fast.losses.ssim"), "LONGEST_MATRIX", 26
    )
    second = ssim(y, truth)
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(torch.autograd.grad(second, y)[0], gradient)


def test_worked_values() -> None:
    truth = torch.full((1, 1, 11, 11), 0.6, dtype=torch.float64)
    y = torch.full((1, 1, 11, 11), 0.2, dtype=torch.float64)
    # Constant pictures: no variance, the means alone.
    expected = (2 * 0.6 * 0.2 + 1e-4) / (0.36 + 0.04 + 1e-4)
    assert ssim(y, truth).item() == pytest.approx(expected)
    assert ssim_loss(y, truth).item() == pytest.approx(1 - expected)
    same, _ = pictures()
    assert ssim(same, same).item() == pytest.approx(1.0, abs=1e-6)


def test_gradients() -> None:
    y = torch.rand(1, 2, 12, 13, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(1, 2, 12, 13, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: ssim_loss(y, truth), y)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast_and_layout_change_nothing(layout: torch.memory_format) -> None:
    y, truth = pictures()
    expected = ssim(y, truth)
    with torch.autocast("cpu", torch.bfloat16):
        found = ssim(y.contiguous(memory_format=layout), truth)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_wrong_arguments_are_named() -> None:
    y = torch.rand(1, 3, 10, 40)
    with pytest.raises(ValueError, match="sides must be at least 11"):
        ssim(y, y)
    with pytest.raises(ValueError, match="ssim: y and truth must both"):
        ssim(y[0], y[0])
