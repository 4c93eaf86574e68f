"""Networks copied, pickled, replicated, shared by threads, moved: what goes along and what not."""

from __future__ import annotations

import copy
import pickle
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from clipweather_fast.models import ClipWeather
from small_networks import FakePriorEncoder, photograph, prior_of, small

architectures = pytest.mark.parametrize("architecture", ["ClipWeather", "TransWeather"])


def encoders(network: nn.Module) -> list[nn.Module]:
    return list(network._frozen)  # type: ignore[arg-type]


@architectures
@torch.no_grad()
def test_a_network_through_pickle_and_torch_save(architecture: str, tmp_path: Path) -> None:
    network, image = small(architecture), photograph(64, 64)
    expected = network(image, prior_of(network))
    torch.save(network, tmp_path / "whole.pt")
    for twin in (
        pickle.loads(pickle.dumps(network)),
        torch.load(tmp_path / "whole.pt", weights_only=False),
        copy.deepcopy(network),
    ):
        assert twin.config == network.config
        assert {k: v.stride() for k, v in twin.state_dict().items()} == {
            k: v.stride() for k, v in network.state_dict().items()
        }
        assert torch.equal(twin(image, prior_of(network)), expected)


def test_copies_share_the_frozen_encoder_and_pickles_have_none(
    built: list[FakePriorEncoder],
) -> None:
    network, image = small(), photograph(20, 30)
    prior = network.encode_prior(image)
    averaged = AveragedModel(network)
    for twin in (copy.deepcopy(network), averaged.module):
        assert torch.equal(twin.encode_prior(image), prior)
        assert encoders(twin)[0] is built[0]
    assert len(built) == 1
    stored = pickle.loads(pickle.dumps(network))
    assert encoders(stored) == []
    stored.encode_prior(image)
    assert [it.kind for it in built] == ["clip:fake", "clip:fake"]


def test_every_device_has_an_encoder_of_its_own(built: list[FakePriorEncoder]) -> None:
    """The meta device stands for a second one: moved there, an encoder would be lost."""
    network, image = small(), photograph(20, 30)
    prior = network.encode_prior(image)
    shapes = network.encode_prior(image.to("meta"))
    assert shapes is not None
    assert (shapes.shape, shapes.device.type) == ((1, 12), "meta")
    assert torch.equal(network.encode_prior(image), prior)
    assert len(built) == 1
    assert [next(it.parameters()).device.type for it in encoders(network)] == ["cpu", "meta"]


def test_shapes_alone_can_be_computed() -> None:
    network = small().to("meta")
    assert network(photograph(50, 70).to("meta")).shape == (1, 3, 50, 70)


def test_threads_build_one_encoder(
    built: list[FakePriorEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, image = small(), photograph(64, 64)
    together = threading.Barrier(4)

    def restored(_: int) -> torch.Tensor:
        together.wait()
        with torch.inference_mode():
            return network(image)

    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(restored, range(4)))
    assert len(built) == 1
    assert all(torch.equal(one, results[0]) for one in results)


def replica(network: nn.Module) -> Any:
    """What ``nn.DataParallel`` puts on a device: parameters that are attributes, none listed."""
    twins: OrderedDict[nn.Module, Any] = OrderedDict()
    for module in network.modules():
        twins[module] = module._replicate_for_data_parallel()
    for module, twin in twins.items():
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else twins[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                twin._parameters[name] = None
            else:
                setattr(twin, name, parameter.clone())
    return twins[network]


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("TransWeather", {}),
        ("ClipWeather", {}),
        ("ClipWeather", {"prior_encoder": "convolutional:12"}),
        ("ClipWeather", {"sar_per_channel": True, "sar_bias": False, "prior_fuse": "concat"}),
    ],
    ids=str,
)
def test_a_replica_of_data_parallel_computes_the_same(
    architecture: str, changes: dict[str, Any], built: list[FakePriorEncoder]
) -> None:
    network, image = small(architecture, **changes), photograph(64, 128, n=2)
    twin = replica(network)
    assert list(twin.parameters()) == []
    y = twin(image)
    torch.testing.assert_close(y, network(image))
    y.square().sum().backward()
    assert all(
        p.grad is not None and p.grad.isfinite().all()
        for name, p in network.named_parameters()
        if not name.startswith(("Tenc.mini_patch_embed4", "convtail.conv_output"))
    )


@architectures
def test_channels_last_parameters_and_other_precisions(architecture: str) -> None:
    network, image = small(architecture), photograph(64, 64)
    with torch.no_grad():
        expected = network(image, prior_of(network))
    laid = copy.deepcopy(network).to(memory_format=torch.channels_last)
    torch.testing.assert_close(laid(image, prior_of(network)), expected)
    laid(image, prior_of(network)).square().sum().backward()
    for dtype, allowed in ((torch.float16, 0.02), (torch.bfloat16, 0.1), (torch.float64, 1e-5)):
        low = copy.deepcopy(network).to(dtype)
        with torch.no_grad():
            y = low(image, prior_of(network))
        assert y.dtype == dtype
        assert (y.double() - expected).abs().max() <= allowed * expected.abs().max()


def test_from_pretrained_draws_no_random_number(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    ClipWeather.from_pretrained(tmp_path)
    assert torch.equal(torch.rand(3), expected)
