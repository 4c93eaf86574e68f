"""No copy between the modules: tokens and channels-last images are the same memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: the package under test is the one installed

from benchmarks.layout_copies import copies_in, encoder_call  # noqa: E402
from clipweather_fast.models import list_models  # noqa: E402
from small_networks import photograph, prior_of, small  # noqa: E402


@pytest.mark.parametrize("name", list_models())
def test_the_encoder_copies_no_tensor_into_another_layout(name: str) -> None:
    call = encoder_call(name, 128, 192)
    call()
    found = copies_in(call)
    assert found.count["layout"] == 0
    # Of every stage's main and intra-patch blocks, those whose keys are reduced.
    assert found.count["windows"] == 9
    assert found.count["bias"] > 0


def test_a_layout_copy_would_be_seen() -> None:
    image = torch.rand(1, 8, 16, 16)
    assert copies_in(lambda: image.contiguous(memory_format=torch.channels_last)).count == {
        "layout": 1
    }


@pytest.mark.parametrize("architecture", ["ClipWeather", "TransWeather"])
@torch.no_grad()
def test_a_whole_network_copies_the_picture_and_nothing_else(architecture: str) -> None:
    network, image = small(architecture), photograph(128, 192)
    prior = prior_of(network)
    network(image, prior)
    found = copies_in(lambda: network(image, prior))
    assert found.count["layout"] == 1


def test_dense_weights_lie_as_the_convolutions_read_them() -> None:
    for name, module in small().named_modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            layout = torch.channels_last if module.groups == 1 else torch.contiguous_format
            assert module.weight.is_contiguous(memory_format=layout), name
