"""The registered networks with the prior encoders they name, in place of the other tests' fakes."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from clipweather_fast.models import create_model
from small_networks import FakePriorEncoder, photograph

clip: Any = pytest.importorskip("clipweather_fast.clip")


@pytest.fixture(autouse=True)
def real(built: list[FakePriorEncoder], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "clipweather_fast.clip", clip)


def test_the_tiny_network_learns_its_encoder() -> None:
    network = create_model("clipweather_tiny", gamma_init=0.5, residual_output=False)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_981_029
    network(photograph(70, 50, n=2)).square().sum().backward()
    for parameter in network.get_submodule("prior_encoder").parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_the_paper_s_network_with_clip() -> None:
    network, image = create_model("clipweather_base", prior_weights="random"), photograph(40, 50)
    try:
        prior = network.encode_prior(image)
    except clip.EncoderUnavailable as reason:
        pytest.skip(str(reason))
    assert prior is not None
    assert prior.shape == (1, 512)
    (encoder,) = network._frozen  # type: ignore[misc]
    parts = [*network.parameters(), *encoder.parameters()]
    assert sum(parameter.numel() for parameter in parts) == 126_388_663
    with torch.no_grad():
        assert network.eval()(image, prior).shape == image.shape


def test_without_weights_the_error_says_what_to_pass() -> None:
    network = create_model("clipweather_small", prior_weights=None)
    with pytest.raises(clip.EncoderUnavailable, match="clip:ViT-B-32-quickgelu"):
        network.encode_prior(photograph(8, 8))
