"""What is counted on small pictures without arithmetic is what large ones allocate."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor, nn

from clipweather_fast.models import create_model
from clipweather_fast.restore import Restorer, footprint, memory
from clipweather_fast.restore.footprint import Trace, dry_trace, fake_trace, growth
from known_networks import tiny_network

CPU = torch.device("cpu")
DTYPES = (torch.float32, torch.bfloat16)


def transweather() -> nn.Module:
    return create_model("transweather", dims=(32, 48, 80, 128), depths=(1, 1, 1, 1)).eval()


def networks() -> list[nn.Module]:
    return [tiny_network(prior_encoder="none"), tiny_network(intra_patch=False), transweather()]


def cast(network: nn.Module, dtype: torch.dtype) -> footprint.Call:
    def call(x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
            return network(x).float()

    return call


def computed(call: footprint.Call, height: int, width: int) -> Trace:
    """The trace of a pass that computes everything."""
    recorder = footprint._Recorder(height * width, dry=False)
    with torch.inference_mode(), footprint.observed(), recorder:
        return recorder.run(call, height, width, CPU)


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_pictures_tell_what_larger_ones_allocate(dtype: torch.dtype) -> None:
    for network in networks():
        call = cast(network, dtype)
        found = growth(dry_trace(call, 64, 128), dry_trace(call, 128, 256))
        assert found is not None
        assert found.square == 0
        for height, width in ((256, 256), (192, 576)):
            trace = computed(call, height, width)
            predicted = found.fixed + found.linear * trace.pixels
            assert trace.peak <= predicted <= 1.05 * trace.peak + found.fixed
            assert found.paused * trace.pixels == pytest.approx(trace.paused, rel=0.05)


@pytest.mark.parametrize("dtype", DTYPES)
def test_modules_are_counted_as_on_tensors_without_memory(dtype: torch.dtype) -> None:
    call = cast(tiny_network(prior_encoder="none"), dtype)
    found = growth(*(dry_trace(call, k * 64, k * 128, frozen=False) for k in (1, 2)))
    assert found is not None
    trace = fake_trace(call, 512, 512, CPU)
    predicted = found.fixed + found.linear * trace.pixels
    assert trace.peak <= predicted <= 1.05 * trace.peak + found.fixed


@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_networks_of_the_package_need_no_fake_tensors(
    dtype: torch.dtype, hooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor where operators choose by the size of a picture."""
    monkeypatch.setattr(memory, "fake_trace", lambda *arguments: pytest.fail("the slow path"))
    dense = importlib.import_module("clipweather_fast.ops.dense_conv2d.op")
    monkeypatch.setattr(dense, "ENOUGH_CHANNELS", 8)
    for network in networks():
        if hooked:
            network.register_forward_hook(lambda module, arguments, result: None)
        engine = Restorer(network)._engine
        assert engine._estimate(dtype).per_pixel < 300


def test_a_hook_that_is_not_content_with_zeros_is_no_hindrance() -> None:
    def hook(module: nn.Module, arguments: object, result: Tensor) -> None:
        assert result.is_meta or type(result) is not Tensor or result.any()

    network = tiny_network(prior_encoder="none")
    network.decoder.convd2x.register_forward_hook(hook)
    assert 100 < Restorer(network)._engine._estimate(torch.float32).per_pixel < 300


def test_a_form_that_is_built_meanwhile_computes() -> None:
    torch.manual_seed(0)
    picture = torch.rand(1, 3, 64, 64)
    expected = Restorer(tiny := tiny_network(prior_encoder="none"))(picture)
    again = tiny_network(prior_encoder="none")
    again.load_state_dict(tiny.state_dict())
    restorer = Restorer(again)
    restorer._engine._estimate(torch.float32)
    assert torch.equal(restorer(picture), expected)


def test_the_encoder_of_the_prior_is_not_asked() -> None:
    network = tiny_network(prior_encoder="vit_b32", prior_weights="random")
    restorer = Restorer(network)
    restorer._engine._estimate(torch.float32)
    assert not list(network._frozen)


def traced(pixels: int, *sizes: int) -> Trace:
    """Everything is allocated and then given back, the last first; keys are asked in between."""
    numbers = list(range(len(sizes)))
    events = numbers + [-1 - number for number in reversed(numbers)]
    return Trace(pixels, list(sizes), events, asked=[len(sizes)])


def test_each_tensor_grows_in_its_own_way() -> None:
    found = growth(traced(10, 7, 20, 500, 50 + 8), traced(40, 7, 80, 8000, 200 + 8))
    assert found is not None
    assert found.fixed == pytest.approx(7 + 8)
    assert found.linear == pytest.approx(2 + 5)
    assert found.square == pytest.approx(5)
    assert found.paused == pytest.approx(7)


def test_what_is_given_back_does_not_count() -> None:
    one, two = (Trace(p, [p, 3 * p, 2 * p], [0, 1, -2, 2], asked=[3]) for p in (10, 40))
    found = growth(one, two)
    assert found is not None
    assert (found.linear, found.paused) == (4, 1)


def test_passes_that_differ_tell_nothing() -> None:
    assert growth(traced(10, 1, 2), traced(40, 1, 2, 3)) is None


def test_dense_layers_give_the_shapes_they_would() -> None:
    layers = [
        nn.Conv2d(6, 8, 3, stride=2, padding=1),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2),
        nn.ConvTranspose2d(6, 8, 4, stride=2, padding=1),
        nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1, groups=2),
        nn.Linear(12, 5),
        nn.Linear(12, 5, bias=False),
    ]
    image = torch.rand(2, 6, 10, 12).contiguous(memory_format=torch.channels_last)
    for layer in layers:
        with torch.inference_mode():
            expected = layer(image)
            with footprint._Recorder(1, dry=True):
                found = layer(image)
        assert (found.shape, found.stride()) == (expected.shape, expected.stride())
        assert not found.any()
