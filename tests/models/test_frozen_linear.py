"""The Linear layers of the frozen form against float64."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from clipweather_fast.models import _frozen
from clipweather_fast.models._frozen_layers import FrozenLinear
from clipweather_fast.models._frozen_panels import PanelLinear
from tolerance import ULPS, largest, largest_error

pytestmark = pytest.mark.skipif(
    _frozen._why_not(torch.float32) is not None, reason=str(_frozen._why_not(torch.float32))
)


def layer(features: int, out_features: int, bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(features, out_features, bias=bias).requires_grad_(False)


def check(got: Tensor, module: nn.Linear, x: Tensor) -> None:
    """The one tolerance rule."""
    own = copy.deepcopy(module).to(x.dtype)(x)
    truth = copy.deepcopy(module).double()(x.double())
    assert got.shape == truth.shape
    assert got.dtype == x.dtype
    unit = torch.finfo(x.dtype).eps * largest(truth)
    assert largest_error(got, truth) <= 2 * largest_error(own, truth) + ULPS * unit


SHAPES = [
    ((1, 16, 8), 16),
    ((2, 5, 64), 48),
    ((3, 1, 2), 32),
    ((1, 13, 1300), 80),
    ((2, 401, 34), 96),
    ((9, 24), 160),
    ((0, 8), 16),
    # So large that a matrix unit multiplies float32: half a panel, half a step, rows of 1 to 31.
    ((1, 129, 100), 112),
    ((2, 24, 1300), 80),
    ((50, 2100), 208),
    ((7, 99, 38), 96),
]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "out_features"), SHAPES)
def test_own_product(shape: tuple[int, ...], out_features: int, bias: bool) -> None:
    module, x = layer(shape[-1], out_features, bias), torch.randn(shape)
    frozen = FrozenLinear.of(module, torch.float32)
    assert frozen.own is not None
    check(frozen(x), module, x)
    check(frozen(x.mT.contiguous().mT), module, x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("shape", "out_features"), SHAPES)
def test_own_product_of_pairs(shape: tuple[int, ...], out_features: int, bias: bool) -> None:
    """Which every instruction set has, though only one is fast."""
    module, x = layer(shape[-1], out_features, bias), torch.randn(shape).bfloat16()
    check(PanelLinear(module.weight.bfloat16(), module.bias)(x), module, x)


@pytest.mark.parametrize("features", [24, 64, 70])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_do_not_touch_each_other(dtype: torch.dtype, features: int) -> None:
    module, x = layer(features, 48), torch.randn(1, 53, features).to(dtype)
    linear = PanelLinear(module.weight.to(dtype), module.bias)
    expected = linear(x)
    x[0, 17, -1], x[0, 40, 0] = torch.inf, torch.nan
    broken = linear(x).isfinite().logical_not()
    assert broken.nonzero()[:, 1].unique().tolist() == [17, 40]
    assert torch.equal(linear(x)[~broken], expected[~broken])


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize(("rows", "features"), [(53, 512), (70, 1400)])
def test_tokens_of_large_products_do_not_touch_each_other(
    rows: int, features: int, activation: str
) -> None:
    module, x = layer(features, 80), torch.randn(rows, features)
    linear = PanelLinear(module.weight, module.bias, activation)
    expected = linear(x)
    x[17, -1], x[40, 0] = torch.inf, torch.nan
    broken = linear(x).isfinite().logical_not()
    assert broken.nonzero()[:, 0].unique().tolist() == [17, 40]
    assert torch.equal(linear(x)[~broken], expected[~broken])


@pytest.mark.parametrize("name", ["gelu", "swish"])
@pytest.mark.parametrize(
    ("rows", "features", "out_features"), [(130, 100, 112), (1030, 64, 64), (83, 1100, 80)]
)
def test_activations_of_large_products(
    name: str, rows: int, features: int, out_features: int
) -> None:
    module, x = layer(features, out_features), torch.randn(rows, features)
    activation = {"gelu": nn.functional.gelu, "swish": nn.functional.silu}[name]
    got, threads = PanelLinear(module.weight, module.bias, name)(x), torch.get_num_threads()
    truth = activation(copy.deepcopy(module).double()(x.double()))
    unit = torch.finfo(torch.float32).eps * largest(truth)
    own = largest_error(activation(module(x)), truth)
    assert largest_error(got, truth) <= 2 * own + ULPS * unit
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(PanelLinear(module.weight, module.bias, name)(x), got)
    finally:
        torch.set_num_threads(threads)


def test_odd_depths_are_summed_too() -> None:
    module, x = layer(7, 16), torch.randn(5, 7)
    check(PanelLinear(module.weight, module.bias)(x), module, x)


def test_the_rest_is_left_to_onednn() -> None:
    module, x = layer(24, 40), torch.randn(2, 7, 24)
    frozen = FrozenLinear.of(module, torch.float32)
    assert frozen.own is None
    check(frozen(x), module, x)
    assert not PanelLinear.suits(torch.empty(16, 7, dtype=torch.bfloat16))
    gated = FrozenLinear(module.weight, module.bias, torch.float32, "gelu")
    assert gated.own is None
    assert largest_error(gated(x), nn.functional.gelu(module(x))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("name", "activation"), [("gelu", nn.functional.gelu), ("swish", nn.functional.silu)]
)
def test_activations(name: str, activation: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    module, x = layer(40, 48), (torch.randn(2, 29, 40) * 4).to(dtype)
    module.weight *= 5
    linear = PanelLinear(module.weight.to(dtype), module.bias, name)
    rounded = copy.deepcopy(module).double()(x.double()).to(dtype)
    got, truth = linear(x), activation(copy.deepcopy(module).double()(x.double()))
    # In bfloat16 the activation takes a rounded number and its result is rounded again.
    own = activation(rounded)
    unit = torch.finfo(dtype).eps * largest(truth)
    assert largest_error(got, truth) <= 2 * largest_error(own, truth) + ULPS * unit
    extremes = torch.tensor([[-200.0, 200.0, torch.nan, 0.0]], dtype=dtype)
    identity = PanelLinear(torch.eye(16, 4, dtype=dtype), None, name)
    got = identity(extremes)[0, :4]
    # 0 times a NaN is one: each column sees it.
    assert got.isnan().all()
    got = identity(extremes.nan_to_num(1.0))[0, :4]
    near = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 1e-4, "rtol": 1e-2}
    torch.testing.assert_close(got, activation(extremes.nan_to_num(1.0))[0], **near)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bits_are_those_of_one_thread(dtype: torch.dtype) -> None:
    module = layer(512, 96)
    frozen, x = (
        PanelLinear(module.weight.to(dtype), module.bias),
        torch.randn(1, 700, 512).to(dtype),
    )
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = frozen(x)
        torch.set_num_threads(2)
        assert torch.equal(frozen(x), expected)
    finally:
        torch.set_num_threads(threads)
