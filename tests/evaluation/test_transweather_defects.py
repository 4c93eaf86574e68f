"""The five mistakes in TransWeather's metrics of 2021, each one shown and measured.

``transweather_2021`` exists to read old tables. What each mistake does is compared with the same
computation without it.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipweather_fast.evaluation import PROTOCOLS, psnr, ssim

oracle = pytest.importorskip("skimage.metrics", reason="scikit-image is the oracle")

HISTORICAL = "transweather_2021"
Plane = NDArray[np.float64]


def smooth(height: int = 64, width: int = 96) -> Tensor:
    """A picture (3, H, W) between 0.2 and 0.8, whose channels differ."""
    y = torch.arange(height, dtype=torch.float64)[:, None] / 11
    x = torch.arange(width, dtype=torch.float64) / 13
    return torch.stack([0.5 + 0.15 * (torch.sin(x + c) + torch.cos(y - c)) for c in range(3)])


def noisy(picture: Tensor, shared: bool, sigma: float = 0.03) -> Tensor:
    """With noise that is the same in all channels, or of its own in each."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, *picture.shape[1:]) if shared else picture.shape
    return picture + sigma * torch.randn(shape, generator=generator, dtype=torch.float64)


def luma(picture: Tensor, *, swapped: bool) -> Plane:
    """Y of (3, H, W), by the weights of red, green and blue in this or the opposite order."""
    weights = np.array([0.299, 0.587, 0.114])
    return np.tensordot(weights[::-1] if swapped else weights, picture.numpy(), 1)


def misread(picture: Tensor) -> Tensor:
    """(3, H, W) whose memory was viewed as (H, W, 3)."""
    height, width = picture.shape[1:]
    return picture.contiguous().view(height, width, 3).permute(2, 0, 1)


def decibels(x: Plane, y: Plane, span: float) -> float:
    return 10 * math.log10(span**2 / np.mean((x - y) ** 2))


def test_it_is_labelled_historical_and_is_the_only_one() -> None:
    assert [p.name for p in PROTOCOLS.values() if p.historical] == [HISTORICAL]
    assert "historical" in PROTOCOLS[HISTORICAL].title


def test_first_a_view_instead_of_a_permutation_scrambles_the_pixels() -> None:
    truth = smooth()
    restored = noisy(truth, shared=True)
    scrambled = [luma(misread(picture), swapped=True) for picture in (restored, truth)]
    right = [luma(picture, swapped=True) for picture in (restored, truth)]
    found = psnr(restored, truth, HISTORICAL)
    assert found == pytest.approx(decibels(*scrambled, 1), rel=1e-12)
    # Three neighbours of one channel are averaged as if they were red, green and blue: of noise
    # that the channels share, Y keeps all, the scrambled "Y" only what that average leaves.
    weights = np.array([0.299, 0.587, 0.114])
    gained = -10 * math.log10((weights**2).sum())
    assert found - decibels(*right, 1) == pytest.approx(gained, abs=0.15)  # 3.47 dB


def test_second_one_pixel_below_zero_adds_six_decibels() -> None:
    truth = smooth()
    restored = noisy(truth, shared=False)
    before = psnr(restored, truth, HISTORICAL)
    dark = restored.clone()
    dark[:, 0, :3] = -0.01  # one "pixel" of the scrambled picture
    scrambled = [luma(misread(picture), swapped=True) for picture in (dark, truth)]
    after = psnr(dark, truth, HISTORICAL)
    assert after == pytest.approx(decibels(*scrambled, 2), rel=1e-12)
    assert after - decibels(*scrambled, 1) == pytest.approx(20 * math.log10(2))  # 6.02 dB
    assert after > before + 4  # though the picture became worse
    # It is the restored picture's range that is guessed, so the order of the two matters.
    assert psnr(truth, dark, HISTORICAL) == pytest.approx(decibels(*scrambled, 1), rel=1e-12)


def test_third_ssim_takes_two_for_the_range_of_values() -> None:
    truth = smooth()
    restored = noisy(truth, shared=False, sigma=0.1)
    scrambled = [luma(misread(picture), swapped=True) for picture in (restored, truth)]
    found = ssim(restored, truth, HISTORICAL)
    assert found == pytest.approx(oracle.structural_similarity(*scrambled, data_range=2), rel=1e-10)
    assert found > oracle.structural_similarity(*scrambled, data_range=1) + 0.05


def test_fourth_red_and_blue_change_places_in_the_luma() -> None:
    # A flat picture is the same scrambled or not where a row holds whole triples of one channel.
    truth = torch.full((3, 12, 12), 0.5, dtype=torch.float64)
    reddish, bluish = truth.clone(), truth.clone()
    reddish[0] += 0.1
    bluish[2] += 0.1
    # By hand: the first third of the scrambled rows is the red plane, so a third of all "pixels"
    # differ, each by the whole tenth.
    by_hand = 10 * math.log10(1 / (0.1**2 / 3))
    assert psnr(reddish, truth, HISTORICAL) == pytest.approx(by_hand)
    assert psnr(bluish, truth, HISTORICAL) == pytest.approx(by_hand)
    # The weights show on columns: the first of each three counts as red, with the weight of blue.
    striped = truth.clone()
    striped[:, :, ::3] += 0.1
    assert psnr(striped, truth, HISTORICAL) == pytest.approx(20 - 20 * math.log10(0.114))
    striped = truth.clone()
    striped[:, :, 2::3] += 0.1
    assert psnr(striped, truth, HISTORICAL) == pytest.approx(20 - 20 * math.log10(0.299))
    # Unscrambled, the weights are the right way round.
    assert psnr(reddish, truth, "paper") < psnr(bluish, truth, "paper")


def test_fifth_training_and_test_numbers_are_two_metrics_and_identical_pictures_crash() -> None:
    truth = smooth()
    restored = noisy(truth, shared=False)
    in_training = -10 * math.log10(torch.mean((restored - truth) ** 2).item())
    assert psnr(restored, truth, "rgb") == pytest.approx(in_training, rel=1e-12)
    assert psnr(restored, truth, HISTORICAL) > in_training + 3  # of the very same pictures
    with pytest.raises((ValueError, ZeroDivisionError)):
        -10 * math.log10(torch.mean((truth - truth) ** 2).item())  # what the 2021 code did
    for protocol in PROTOCOLS:
        assert psnr(truth, truth, protocol) == math.inf


def test_eight_bits_from_a_file_show_less_of_it() -> None:
    # A file holds nothing below 0: the second mistake needs the network's raw output.
    truth = (smooth() * 255).round().to(torch.uint8)
    restored = (noisy(smooth(), shared=False).clamp(0, 1) * 255).round().to(torch.uint8)
    scrambled = [luma(misread(picture), swapped=True) / 255 for picture in (restored, truth)]
    assert psnr(restored, truth, HISTORICAL) == pytest.approx(decibels(*scrambled, 1), rel=1e-12)
