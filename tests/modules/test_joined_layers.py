"""Layers as one step of autograd: what they compute one by one, and when they are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from clipweather_fast.modules import SARFFN, EfficientAttention, _joined_layers, _linear
from clipweather_fast.ops import _native, use_backend

H, W, C = 16, 20, 96


def attention(**options: Any) -> nn.Module:
    return EfficientAttention(C, 3, **options)


def feed_forward(**options: Any) -> nn.Module:
    return SARFFN(C, 3.0, **options)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: attention(sr_ratio=4),
    "attention of all": lambda: attention(sr_ratio=1),
    "attention without biases": lambda: attention(sr_ratio=2, qkv_bias=False, qk_scale=0.1),
    "feed-forward": feed_forward,
    "feed-forward of one kernel": lambda: feed_forward(num_kernels=1, gate="sigmoid"),
    "feed-forward without biases": lambda: feed_forward(kernel_bias=False, sign=-1),
    "feed-forward without a static kernel": lambda: feed_forward(arrangement="direct"),
    "feed-forward of large kernels": lambda: feed_forward(kernel_size=5),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The joined steps; chosen as with AMX, whatever the processor."""
    if _native.why_not_loaded():
        pytest.skip("the native core is not there")
    monkeypatch.setattr(_linear._native, "matrix_unit", lambda: True)
    found: list[str] = []
    for name in ("_Attention", "_Mixer"):
        step = getattr(_joined_layers, name).apply

        def counted(*arguments: object, name: str = name, step: Any = step) -> Tensor:
            found.append(name)
            return step(*arguments)

        monkeypatch.setattr(getattr(_joined_layers, name), "apply", counted)
    return found


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    module = MODULES[name]()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return module, torch.randn(2, H * W, C, requires_grad=True)


def close(one: Tensor | None, other: Tensor | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.shape == other.shape
        torch.testing.assert_close(
            one, other, rtol=1e-4, atol=2e-5 * float(other.detach().abs().max())
        )


@pytest.mark.parametrize("name", MODULES)
def test_values_and_gradients(calls: list[str], name: str) -> None:
    module, x = made(name)
    weights = torch.randn(2, H * W, C)
    results = []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            y = module(x, H, W)
            grads = torch.autograd.grad((y * weights).sum(), [x, *module.parameters()])
        results.append((y, *grads))
    assert len(calls) == 1
    assert results[0][0].is_contiguous()
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", ["attention", "attention of all", "feed-forward"])
@pytest.mark.parametrize("learns", ["x", "one layer", "biases"])
def test_frozen_parameters_get_no_gradient(calls: list[str], name: str, learns: str) -> None:
    module, x = made(name)
    for key, parameter in module.named_parameters():
        own = {"x": False, "one layer": key.startswith(("kv", "fc1")), "biases": "bias" in key}
        parameter.requires_grad_(own[learns])
    x = x.detach().requires_grad_(learns == "x")
    leaves = [x, *module.parameters()]
    results = []
    for backend in ("auto", "reference"):
        with use_backend(backend):
            module(x, H, W).square().mean().backward()
        results.append([leaf.grad for leaf in leaves])
        for leaf in leaves:
            leaf.grad = None
    assert len(calls) == 1
    for one, other in zip(*results, strict=True):
        close(one, other)


@pytest.mark.parametrize("name", ["attention", "attention of all"])
def test_second_derivatives_are_those_of_the_layers(calls: list[str], name: str) -> None:
    """As one by one, where attention's second derivative is refused in words."""
    module, x = made(name)
    (gradient,) = torch.autograd.grad(module(x, H, W).square().sum(), x, create_graph=True)
    with use_backend("reference"):
        (expected,) = torch.autograd.grad(module(x, H, W).square().sum(), x, create_graph=True)
    close(gradient, expected)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.autograd.grad(gradient.square().sum(), x)
    assert len(calls) == 1


def test_recomputed_activations(calls: list[str]) -> None:
    module, x = made("feed-forward")
    results = []
    for call in (lambda: module(x, H, W), lambda: checkpoint(module, x, H, W, use_reentrant=False)):
        results.append(torch.autograd.grad(call().square().mean(), [x, *module.parameters()]))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert len(calls) == 3


@pytest.mark.parametrize("name", ["attention", "feed-forward"])
def test_whoever_has_a_say_meets_the_layers(calls: list[str], name: str) -> None:
    module, x = made(name)
    with torch.no_grad():
        module(x, H, W)
    with torch.autocast("cpu", torch.bfloat16):
        module(x, H, W)
    module.double()(x.double(), H, W)
    module.float()
    with FlopCounterMode(display=False) as counter:
        module(x, H, W)
    assert counter.get_total_flops() > 0
    seen: list[int] = []
    layers = [layer for layer in module.modules() if type(layer) is nn.Linear]
    for layer in layers:
        handle = layer.register_forward_hook(lambda *_: seen.append(1))
        module(x, H, W)
        handle.remove()
    assert len(seen) == len(layers)
    layers[0].forward = lambda x: layers[1](x)[..., :1].expand(2, -1, layers[0].out_features)  # type: ignore[method-assign]
    if name == "feed-forward":
        del layers[0].forward
        module(x, H, W, return_residual=True)
    assert not calls


@pytest.mark.parametrize("name", ["attention", "feed-forward"])
def test_dropout_is_not_left_out(calls: list[str], name: str) -> None:
    drops = {"attention": {"attn_drop": 0.5}, "feed-forward": {"drop": 0.5}}
    torch.manual_seed(0)
    module = {"attention": attention, "feed-forward": feed_forward}[name](**drops[name])
    x = torch.randn(2, H * W, C)
    assert not torch.equal(module(x, H, W), module(x, H, W))
    assert not calls
    module.eval()
    assert torch.equal(module(x, H, W), module(x, H, W))
    assert len(calls) == 2


def test_attention_drops_its_result(calls: list[str]) -> None:
    module = attention(proj_drop=0.5)
    y = module(torch.randn(2, H * W, C), H, W)
    assert 0.4 < float((y == 0).float().mean()) < 0.6
    assert len(calls) == 1


def test_parameters_of_other_shapes_are_refused_as_ever(calls: list[str]) -> None:
    """A kernel would read beyond their end."""
    module, x = made("feed-forward")
    module.fc2 = nn.Linear(C, C)
    with pytest.raises(RuntimeError):
        module(x, H, W)
    module, x = made("feed-forward")
    module.sar.pointwise.bias = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="sar_mixer: pointwise_bias"):
        module(x, H, W)
    module, x = made("attention")
    module.kv = nn.Linear(C, C)
    with pytest.raises((RuntimeError, ValueError)):
        module(x, H, W)
    module, x = made("attention")
    module.q.bias = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError):
        module(x, H, W)
    with pytest.raises(RuntimeError):
        _linear.linear(torch.randn(2, 300, 64), nn.Linear(C, C))
    assert not calls
