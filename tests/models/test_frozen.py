"""The frozen form of the networks: what it computes, when it is taken, that it stays in step."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from clipweather_fast import create_model, use_backend
from clipweather_fast.models import RestorationNetwork, _frozen, _recordings
from clipweather_fast.models._conv_decoder import Conv, Detail, Residual, Up
from clipweather_fast.models._frozen_decoder import FrozenTail
from clipweather_fast.models._frozen_layers import FrozenNorm, residual_norm
from clipweather_fast.models.registry import WEIGHTS
from clipweather_fast.ops import _native
from clipweather_fast.ops._native import matrix_unit
from small_networks import photograph, prior_of, small
from tolerance import ULPS, largest, largest_error

pytestmark = pytest.mark.skipif(
    _frozen._why_not(torch.float32) is not None, reason=str(_frozen._why_not(torch.float32))
)
needs_bfloat16 = pytest.mark.skipif(
    _frozen._why_not(torch.bfloat16) is not None, reason=str(_frozen._why_not(torch.bfloat16))
)

VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "detail": {"detail_channels": 6, "residual_output": True},
    "gated": {"residual_output": "gated"},
    "gated detail": {"detail_channels": 5, "residual_output": "gated"},
    "no sar": {"num_kernels": 0},
    "sequential": {"sar_arrangement": "sequential", "sar_sign": -1},
    "direct": {"sar_arrangement": "direct"},
    "subtracted": {"sar_sign": -1, "sar_kernel_size": 5, "sar_gate": "sigmoid"},
    "per channel": {"sar_per_channel": True},
    "concatenated": {"prior_fuse": "concat"},
    "no prior": {"prior_encoder": "none"},
    "no intra-patch": {"intra_patch": False},
}


@torch.no_grad()
def frozen(network: RestorationNetwork, image: Tensor) -> Tensor:
    return network(image, prior_of(network, image.shape[0]))


@torch.no_grad()
def plain(network: RestorationNetwork, image: Tensor) -> Tensor:
    """By the modules, on plain PyTorch."""
    with use_backend("reference"):
        return network(image, prior_of(network, image.shape[0]))


def forms(network: nn.Module) -> set[torch.dtype]:
    return set(_frozen._forms.of(network))


def check(network: RestorationNetwork, image: Tensor) -> None:
    """The one tolerance rule, against the modules in float64."""
    got, own = frozen(network, image), plain(network, image)
    exact = copy.deepcopy(network).double()
    prior = prior_of(network, image.shape[0])
    with torch.no_grad():
        truth = exact(image.double(), None if prior is None else prior.double())
    unit = torch.finfo(torch.float32).eps * largest(truth)
    assert largest_error(got, truth) <= 2 * largest_error(own, truth) + ULPS * unit


@pytest.mark.parametrize("variant", VARIANTS)
def test_it_computes_what_the_modules_do(variant: str) -> None:
    network = small(**VARIANTS[variant])
    check(network, photograph(72, 90, n=2))
    assert forms(network) == {torch.float32}


@pytest.mark.parametrize("size", [(64, 64), (50, 83)], ids=str)
def test_it_computes_what_transweathers_modules_do(size: tuple[int, int]) -> None:
    network = small("TransWeather")
    check(network, photograph(*size))
    assert forms(network) == {torch.float32}


def decibels(one: Tensor, other: Tensor) -> float:
    return -10 * float((one.float() - other.float()).square().mean().log10())


@needs_bfloat16
def test_trained_weights_keep_the_picture_in_bfloat16() -> None:
    # Its own prior encoder is no part of the form, and is not there in these tests.
    network = create_model("clipweather_tiny", prior_encoder="clip:unused").eval()
    state = load_file(WEIGHTS["clipweather_tiny"] / "model.safetensors")
    network.load_state_dict({k: v for k, v in state.items() if not k.startswith("prior_encoder")})
    image, prior = photograph(128, 192), prior_of(network)
    with torch.no_grad():
        with use_backend("reference"):
            expected = network(image, prior)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = network(image, prior)
        exact = network(image, prior)
    assert forms(network) == {torch.float32, torch.bfloat16}
    assert got.dtype == torch.float32  # the picture was added
    assert decibels(got, expected) >= 50
    assert decibels(exact, expected) >= 110


@needs_bfloat16
def test_under_autocast_the_result_has_its_dtype() -> None:
    network, image = small(), photograph(64, 64)
    expected = frozen(network, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = frozen(network, image)
    assert got.dtype == torch.bfloat16
    assert decibels(got, expected) >= 35  # random weights


@pytest.mark.parametrize("variant", ["paper", "detail"])
def test_where_bfloat16_is_slower_it_multiplies_in_float32(
    variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "bfloat16_pays", lambda: False)
    network, image = small(**VARIANTS[variant]), photograph(50, 83)
    expected = frozen(network, image)
    for _ in range(_recordings.PASSES_BEFORE + 2):  # computed, recorded, replayed
        with torch.autocast("cpu", dtype=torch.bfloat16):
            got = frozen(network, image)
        # Rounded as the modules' result would be: not where the picture is added.
        assert got.dtype == (torch.bfloat16 if variant == "paper" else torch.float32)
        assert torch.equal(got, expected.to(got.dtype))
    assert torch.equal(frozen(network, image), expected)
    assert forms(network) == {torch.float32}


def in_place(network: RestorationNetwork) -> None:
    network.decoder.convd4x.conv2d.weight.add_(0.1)


def loaded(network: RestorationNetwork) -> None:
    network.load_state_dict({k: v * 1.5 for k, v in network.state_dict().items()})


def exchanged(network: RestorationNetwork) -> None:
    weight = network.encoder.block1[0].mlp.fc2.weight
    weight.data = weight.data * 2


def replaced(network: RestorationNetwork) -> None:
    network.encoder.block2[1] = copy.deepcopy(network.encoder.block2[0])


def past_the_count(network: RestorationNetwork) -> None:
    for parameter in network.parameters():  # as averaged weights are often kept
        parameter.data.mul_(0.9).add_(0.01)


@pytest.mark.parametrize("change", [in_place, loaded, exchanged, replaced, past_the_count])
def test_it_follows_the_weights(change: Callable[[RestorationNetwork], None]) -> None:
    network, image = small(), photograph(64, 64)
    before = frozen(network, image)
    with torch.no_grad():
        change(network)
    after = frozen(network, image)
    assert largest_error(after, before) > 1e-4
    assert largest_error(after, plain(network, image)) < 1e-5


def test_the_same_weights_are_not_frozen_twice() -> None:
    network, image = small(), photograph(64, 64)
    frozen(network, image)
    form = _frozen._forms.of(network)[torch.float32]
    frozen(network, image)
    assert _frozen._forms.of(network)[torch.float32] is form


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hooked(network: RestorationNetwork) -> None:
    layer = network.encoder.block1[0].mlp.fc2
    layer.register_forward_hook(lambda module, given, y: 2 * y)


def of_another_class(network: RestorationNetwork) -> None:
    network.encoder.block1[0].mlp.fc2.__class__ = Doubled


def patched(network: RestorationNetwork) -> None:
    layer = network.encoder.block1[0].mlp.fc2
    layer.forward = lambda x: 2 * F.linear(x, layer.weight, layer.bias)


def training(network: RestorationNetwork) -> None:
    network.encoder.block1[0].train()


@pytest.mark.parametrize("change", [hooked, of_another_class, patched, training])
def test_it_steps_aside(change: Callable[[RestorationNetwork], None]) -> None:
    network, image = small(), photograph(64, 64)
    change(network)
    assert largest_error(frozen(network, image), plain(network, image)) < 1e-5
    assert forms(network) == set()


def test_gradients_named_backends_and_residuals_take_the_modules() -> None:
    network, image = small(), photograph(64, 64)
    network(image, prior_of(network)).sum().backward()
    plain(network, image)
    with torch.no_grad():
        network(image, prior_of(network), return_residuals=True)
        network.half().float()
        network.double()(image.double(), prior_of(network).double())
    assert forms(network) == set()


# The wider first: where a buffer took it, the result is wrong before the narrower breaks the heap.
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("variant", ["paper", "gated detail"])
def test_the_dtype_that_tensors_have_by_default_does_not_matter(
    variant: str, dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    network, image = small(**VARIANTS[variant]), photograph(64, 72)
    prior = prior_of(network, 1)
    with torch.no_grad():
        expected = network(image, prior)
        default_dtype(dtype)
        got = network(image, prior)
    assert got.dtype == torch.float32
    assert torch.equal(got, expected)


def test_it_leaves_no_trace_in_the_network() -> None:
    network, image = small(), photograph(64, 64)
    keys, names = list(network.state_dict()), set(vars(network))
    expected = frozen(network, image)
    assert list(network.state_dict()) == keys
    assert set(vars(network)) == names
    copied = copy.deepcopy(network)
    assert forms(copied) == set()
    assert torch.equal(frozen(copied, image), expected)
    watched = weakref.ref(network)
    del network
    gc.collect()
    assert watched() is None


def test_bits_repeat_on_any_number_of_threads() -> None:
    network, image = small(detail_channels=6), photograph(64, 72)
    expected, threads = frozen(network, image), torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        # oneDNN may cut its products otherwise; the passes of this package do not.
        assert largest_error(frozen(network, image), expected) < 1e-6
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(frozen(network, image), expected)


# ---- the fused passes, by themselves -------------------------------------------------------------


@pytest.mark.parametrize("channels", [5, 16, 24, 33, 48, 80, 128, 144])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_residual_norm(channels: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layers = [nn.LayerNorm(channels), nn.LayerNorm(channels, eps=1e-6)]
    for layer in layers:
        layer.weight.normal_()
        layer.bias.normal_()
    branch, residual = (
        torch.randn(2, 301, channels).to(dtype) * 3 + 1,
        torch.randn(2, 301, channels),
    )
    for first in (None, layers[0]):
        for rest in (None, residual):
            total = branch.float() if first is None else first(branch.float())
            total = total if rest is None else total + rest
            got, normed = residual_norm(
                branch,
                None if rest is None else rest.clone(),
                FrozenNorm(layers[1]),
                dtype,
                before=None if first is None else FrozenNorm(first),
            )
            assert got is not None
            assert normed is not None
            torch.testing.assert_close(got, total, rtol=1e-5, atol=1e-5)
            expected = layers[1](total).to(dtype)
            tolerance = 1e-5 if dtype == torch.float32 else 2e-2
            torch.testing.assert_close(normed, expected, rtol=tolerance, atol=tolerance)
            assert normed.dtype == dtype


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("detail", [0, 6, 16])
@pytest.mark.parametrize("channels", [(16, 8), (5, 3), (8, 6)], ids=str)
@torch.no_grad()
def test_the_tail_over_the_borders_of_its_tasks(
    channels: tuple[int, int], detail: int, dense: bool
) -> None:
    torch.manual_seed(0)
    inner, outer = channels
    up, last = Up(inner, outer), Conv(outer, 3)
    branch = Detail(outer, detail) if detail else None
    block = Residual(inner) if dense else None
    if block is not None:  # so that it counts
        block.conv1.conv2d.bias.add_(1)
        block.conv2.conv2d.weight.mul_(10)
    picture = torch.rand(2, 3, 134, 278).contiguous(memory_format=torch.channels_last) * 2 - 1
    features = torch.randn(2, inner, 67, 139)
    low = [] if _frozen._why_not(torch.bfloat16) else [(torch.bfloat16, 0.03)]
    for dtype, tolerance in [(torch.float32, 2e-6), *low]:
        tail = FrozenTail(block, up, branch, last, adds_picture=bool(detail), dtype=dtype)
        y = features.to(dtype).float()
        y = up(y if block is None else block(y))
        if branch is not None:
            y = branch(y, picture)
        y = torch.tanh(last(y))
        expected = y + (picture + 1) / 2 if detail else y
        x = features.to(dtype)
        assert largest_error(tail(x, picture), expected) < tolerance
        cropped = tail(x, picture, (131, 269))
        assert torch.equal(cropped, tail(x, picture)[:, :, :131, :269])
        assert tail(x, picture, (8, 0)).shape == (2, 3, 8, 0)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_what_breaks_the_tail_breaks_no_more_than_it_must(dtype: torch.dtype, dense: bool) -> None:
    """A gated one; broken pixels inside, in corners and where tasks meet."""
    if dense and not (matrix_unit() and dtype == torch.bfloat16):
        pytest.skip("the block is computed before the pass, where tiles break together")
    torch.manual_seed(0)
    up, branch, last = Up(16, 8), Detail(8, 16), Conv(8, 4)
    block = Residual(16) if dense else None
    tail = FrozenTail(block, up, branch, last, adds_picture=True, dtype=dtype)
    picture = torch.rand(1, 3, 140, 270).contiguous(memory_format=torch.channels_last) * 2 - 1
    features = torch.randn(1, 16, 70, 135).to(dtype)

    def expected() -> Tensor:
        x = features.float()
        y = torch.tanh(last(branch(up(x if block is None else block(x)), picture)))
        return y[:, :3] + (1 - y[:, 3:]) * (picture + 1) / 2

    tolerance = 2e-6 if dtype == torch.float32 else 0.03
    assert largest_error(tail(features, picture), expected()) < tolerance
    for row, column in ((0, 0), (31, 20), (63, 127), (69, 134)):
        features[0, 3, row, column] = torch.nan
    picture[0, 1, 90, 60] = torch.nan
    got, truth = tail(features, picture), expected()
    assert torch.equal(got.isnan(), truth.isnan())
    assert largest_error(got.nan_to_num(), truth.nan_to_num()) < tolerance


@torch.no_grad()
def test_the_tail_shows_weights_that_broke_behind_its_relu() -> None:
    torch.manual_seed(0)
    branch = Detail(8, 6)
    next(branch.conv1.parameters())[2, 1, 1, 1] = torch.nan
    tail = FrozenTail(None, Up(16, 8), branch, Conv(8, 3), adds_picture=True, dtype=torch.float32)
    picture = torch.rand(1, 3, 16, 24).contiguous(memory_format=torch.channels_last)
    assert tail(torch.randn(1, 16, 8, 12), picture).isnan().all()
