"""PSNR and SSIM against scikit-image, torchmetrics and values worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from clipweather_fast.evaluation import PROTOCOLS, psnr, score, ssim
from clipweather_fast.evaluation import metrics as implementation
from clipweather_fast.restore import read_picture

oracle = pytest.importorskip("skimage.metrics", reason="scikit-image is the oracle")

MODERN = ("paper", "rgb", "y_matlab")
#: (height, width): the smallest, odd ones, and more rows than one strip has.
SIZES = [(11, 11), (37, 53), (12, 300), (1300, 40)]

Pixels = NDArray[np.uint8]


def pair(height: int, width: int, noise: float = 20, seed: int = 0) -> tuple[Pixels, Pixels]:
    """A smooth picture with noise, and the picture."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    planes = [np.sin(x / (5 + c)) + np.cos(y / (7 - c)) for c in range(3)]
    truth = np.stack(planes, 2) * 55 + 128
    noisy = truth + random.normal(0, noise, truth.shape)
    return (np.clip(picture, 0, 255).astype(np.uint8) for picture in (noisy, truth))


def luma(pixels: NDArray[np.number]) -> NDArray[np.float64]:
    """Full-range Y of BT.601."""
    return pixels.astype(np.float64) @ np.array([0.299, 0.587, 0.114])


def studio(pixels: Pixels) -> NDArray[np.float64]:
    """Y from 16 to 235, with MATLAB's own constants."""
    return 16 + pixels / 255 @ np.array([65.481, 128.553, 24.966])


# ---- oracles -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_paper_is_scikit_image_on_the_luma_of_eight_bits(size: tuple[int, int]) -> None:
    restored, truth = pair(*size)
    x, y = luma(restored), luma(truth)
    expected = oracle.peak_signal_noise_ratio(y, x, data_range=255)
    assert psnr(restored, truth, "paper") == pytest.approx(expected, rel=1e-12)
    expected = oracle.structural_similarity(y, x, data_range=255)
    assert ssim(restored, truth, "paper") == pytest.approx(expected, rel=1e-12)


GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


@pytest.mark.parametrize("size", SIZES)
def test_rgb_is_scikit_image_with_a_gaussian_window(size: tuple[int, int]) -> None:
    restored, truth = (picture / 255 for picture in pair(*size))
    expected = oracle.peak_signal_noise_ratio(truth, restored, data_range=1)
    assert psnr(restored, truth, "rgb") == pytest.approx(expected, rel=1e-12)
    expected = oracle.structural_similarity(
        truth, restored, data_range=1, channel_axis=2, **GAUSSIAN
    )
    assert ssim(restored, truth, "rgb") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_y_matlab_is_scikit_image_on_the_luma_of_matlab(size: tuple[int, int]) -> None:
    restored, truth = pair(*size)
    x, y = studio(restored), studio(truth)
    expected = oracle.peak_signal_noise_ratio(y, x, data_range=255)
    assert psnr(restored, truth, "y_matlab") == pytest.approx(expected, rel=1e-12)
    expected = oracle.structural_similarity(y, x, data_range=255, **GAUSSIAN)
    assert ssim(restored, truth, "y_matlab") == pytest.approx(expected, rel=1e-12)


def test_rgb_is_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.functional.image", reason="the second oracle")
    restored, truth = (
        torch.from_numpy(picture / 255).permute(2, 0, 1)[None] for picture in pair(37, 53)
    )
    # It takes the range of the values, and so the result, in float32.
    expected = image.peak_signal_noise_ratio(restored, truth, data_range=1.0)
    assert psnr(restored, truth, "rgb") == pytest.approx(expected.item(), rel=1e-6)
    # Its mean is over places beyond the picture's edge too, where it mirrors the picture.
    _, everywhere = image.structural_similarity_index_measure(
        restored, truth, data_range=1.0, return_full_image=True
    )
    expected = everywhere[..., 5:-5, 5:-5].mean()
    assert ssim(restored, truth, "rgb") == pytest.approx(expected.item(), rel=1e-6)


# ---- by hand -------------------------------------------------------------------------------------


def flat(value: float | tuple[float, ...], size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    """A picture of one colour."""
    colour = torch.as_tensor(value, dtype=torch.float64).expand(3)
    return colour[:, None, None].expand(3, *size)


def test_psnr_of_flat_pictures_by_hand() -> None:
    # A difference of a tenth of the range is 20 dB; of eight bits 0.5 is 128 and 0.6 is 153.
    assert psnr(flat(0.6), flat(0.5), "rgb") == pytest.approx(20)
    assert psnr(flat(0.6), flat(0.5), "paper") == pytest.approx(20 * math.log10(255 / 25))
    # Red alone counts a third of the squares in RGB, and 0.299 of the value in Y.
    reddish = flat((0.6, 0.5, 0.5))
    assert psnr(reddish, flat(0.5), "rgb") == pytest.approx(20 + 10 * math.log10(3))
    by_hand = 20 * math.log10(255 / (25 * 0.299))
    assert psnr(reddish, flat(0.5), "paper") == pytest.approx(by_hand)
    by_hand = 20 * math.log10(255 / (25 * 65.481 / 255))
    assert psnr(reddish, flat(0.5), "y_matlab") == pytest.approx(by_hand)


def test_ssim_of_flat_pictures_by_hand() -> None:
    # No variance: what is left of the formula is (2ab + C₁) / (a² + b² + C₁).
    a, b, c1 = 0.6, 0.5, 0.01**2
    by_hand = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(flat(a), flat(b), "rgb") == pytest.approx(by_hand)
    a, b, c1 = 153.0, 128.0, 2.55**2
    by_hand = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(flat(0.6), flat(0.5), "paper") == pytest.approx(by_hand)
    a, b = (16 + 219 * value / 255 for value in (a, b))
    by_hand = (2 * a * b + c1) / (a * a + b * b + c1)
    assert ssim(flat(0.6), flat(0.5), "y_matlab") == pytest.approx(by_hand)


def test_ssim_of_one_window_by_hand() -> None:
    # One 7 × 7 window with a single white pixel against none: m = 255/49, s² = 255² (1/49)(48/49)
    # of the population, 49/48 of it of the sample: 255²/49.
    black, dotted = np.zeros((7, 7, 3), np.uint8), np.zeros((7, 7, 3), np.uint8)
    dotted[3, 2] = 255
    mean, variance, c1, c2 = 255 / 49, 255**2 / 49, 2.55**2, 7.65**2
    by_hand = c1 * c2 / ((mean**2 + c1) * (variance + c2))
    assert ssim(dotted, black, "paper") == pytest.approx(by_hand, rel=1e-12)


@given(seed=st.integers(0, 1000), noise=st.floats(1, 60))
def test_studio_range_adds_the_same_decibels_to_every_picture(seed: int, noise: float) -> None:
    restored, truth = pair(12, 15, noise, seed)
    gained = psnr(restored, truth, "y_matlab") - psnr(restored, truth, "paper")
    assert gained == pytest.approx(20 * math.log10(255 / 219))  # 1.32 dB


def test_luma_hides_what_differs_between_channels() -> None:
    restored, truth = pair(40, 60)
    gained = psnr(restored, truth, "paper") - psnr(restored, truth, "rgb")
    assert 1.5 < gained < 4  # the 1.5 to 3 dB that the field's papers argue about


# ---- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_identical_pictures_are_infinitely_near(protocol: str) -> None:
    _, truth = pair(20, 30)
    for same in (truth, truth / 255, truth / np.float32(255)):
        assert psnr(same, same, protocol) == math.inf
        assert ssim(same, same, protocol) == pytest.approx(1, abs=1e-12)
    assert psnr(np.zeros((11, 11)), np.zeros((11, 11)), protocol) == math.inf


@pytest.mark.parametrize("protocol", MODERN)
@given(seed=st.integers(0, 1000))
def test_both_orders_give_the_same(protocol: str, seed: int) -> None:
    restored, truth = pair(13, 17, seed=seed)
    assert psnr(restored, truth, protocol) == psnr(truth, restored, protocol)
    assert ssim(restored, truth, protocol) == pytest.approx(ssim(truth, restored, protocol))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_strips_give_what_the_whole_gives(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    restored, truth = pair(45, 31)
    expected = score(restored, truth, [protocol])[protocol]
    for rows in (1, 5, 44):
        monkeypatch.setattr(implementation, "STRIP", 31 * rows)
        found = score(restored, truth, [protocol])[protocol]
        assert found.psnr == pytest.approx(expected.psnr, rel=1e-13)
        assert found.ssim == pytest.approx(expected.ssim, rel=1e-13)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_score_is_psnr_and_ssim(protocol: str) -> None:
    restored, truth = pair(30, 41)
    found = score(restored, truth, PROTOCOLS)
    assert list(found) == list(PROTOCOLS)
    assert found[protocol].protocol == protocol
    assert found[protocol].psnr == pytest.approx(psnr(restored, truth, protocol), rel=1e-13)
    assert found[protocol].ssim == ssim(restored, truth, protocol)
    assert str(found[protocol]).endswith(f"({protocol})")


# ---- kinds of pictures ---------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_kind_of_picture_gives_the_same(protocol: str, tmp_path: Path) -> None:
    restored, truth = pair(20, 31)
    for name, picture in (("restored.png", restored), ("truth.png", truth)):
        Image.fromarray(picture).save(tmp_path / name)
    expected = score(restored, truth, [protocol])[protocol]
    tensors = [torch.from_numpy(picture).permute(2, 0, 1) for picture in (restored, truth)]
    kinds = [
        (tmp_path / "restored.png", str(tmp_path / "truth.png")),
        (read_picture(tmp_path / "restored.png"), Image.open(tmp_path / "truth.png")),
        (tensors[0], tensors[1][None]),
        (tensors[0].double() / 255, truth / 255),
        (restored.astype(np.uint16) * 257, truth[:, ::-1][:, ::-1]),
        (tensors[0].contiguous().float() / 255, tensors[1].float() / 255),
    ]
    for a, b in kinds:
        found = score(a, b, [protocol])[protocol]
        assert found.psnr == pytest.approx(expected.psnr, rel=1e-6)
        assert found.ssim == pytest.approx(expected.ssim, rel=1e-6)


def test_gray_and_sixteen_bits() -> None:
    restored, truth = (picture[..., 0] for picture in pair(20, 31))
    expected = oracle.peak_signal_noise_ratio(truth, restored, data_range=255)
    assert psnr(restored, truth, "paper") == pytest.approx(expected)
    assert psnr(restored, truth, "rgb") == pytest.approx(expected)
    assert psnr(restored, np.repeat(truth[..., None], 3, 2), "rgb") == pytest.approx(expected)
    # Eight bits of sixteen are rounded to, as writing the picture with eight does.
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    shallow = ((deep.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    assert psnr(deep, shallow, "paper") == math.inf
    assert 50 < psnr(deep, shallow, "rgb") < 60


def test_paper_and_y_matlab_see_eight_bits_and_clamp() -> None:
    levels = torch.arange(256, dtype=torch.float64).reshape(1, 16, 16).expand(3, 16, 16) / 255
    shaken = (levels + torch.linspace(-0.49, 0.49, 16) / 255)[None]
    for protocol in ("paper", "y_matlab"):
        assert psnr(shaken, levels, protocol) == math.inf
    assert psnr(shaken, levels, "rgb") < 60
    outside = torch.where(levels < 0.5, levels.new_tensor(-0.9), levels.new_tensor(1.9))
    clamped = outside.clamp(0, 1)
    for protocol in MODERN:
        assert psnr(outside, clamped, protocol) == math.inf


def test_not_a_number_is_not_hidden() -> None:
    broken = flat(0.5).clone()
    broken[0, 3, 3] = math.nan
    for protocol in PROTOCOLS:
        assert math.isnan(psnr(broken, flat(0.5), protocol))
        assert math.isnan(ssim(broken, flat(0.5), protocol))


# ---- errors --------------------------------------------------------------------------------------


def test_errors_say_what_was_expected() -> None:
    good = np.zeros((12, 20, 3), np.uint8)
    with pytest.raises(ValueError, match="20 x 12 pixels and the truth 20 x 13"):
        psnr(good, np.zeros((13, 20, 3), np.uint8))
    with pytest.raises(ValueError, match="no protocol 'Y'; there are paper, rgb, y_matlab"):
        psnr(good, good, "Y")
    with pytest.raises(ValueError, match="at least 7 x 7 pixels, got 6 x 12"):
        ssim(good[:, :6], good[:, :6], "paper")
    with pytest.raises(ValueError, match="at least 11 x 11 pixels, got 20 x 10"):
        ssim(good[:10], good[:10], "rgb")
    assert psnr(good[:1, :1], good[:1, :1] + np.uint8(255)) == 0
    with pytest.raises(ValueError, match="divide by 255, or pass uint8"):
        psnr(good.astype(np.float64) + 200, good)
    with pytest.raises(ValueError, match="one picture after the other"):
        psnr(torch.zeros(2, 3, 12, 20), good)
    with pytest.raises(ValueError, match="pass the colours alone"):
        psnr(np.zeros((12, 20, 4), np.uint8), good)
    with pytest.raises(TypeError, match="uint8, uint16 or floating point"):
        psnr(good.astype(np.int64), good)
    with pytest.raises(TypeError, match="got dict"):
        psnr({}, good)
    with pytest.raises(ValueError, match="there is no such file"):
        psnr("nowhere.png", good)
