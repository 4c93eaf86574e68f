"""Layers as one step of autograd: what they compute one by one, and when they are left alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from clipweather_fast.modules import SARFFN, EfficientAttention, _joined_layers
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
    monkeypatch.setattr(_native, "matrix_unit", lambda: True)
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
    own = layers[0].forward
    layers[0].forward = lambda x: own(x) + 1  # type: ignore[method-assign]
    patched = module(x, H, W)
    with use_backend("reference"):
        torch.testing.assert_close(patched, module(x, H, W), rtol=1e-4, atol=1e-4)
    del layers[0].forward
    if name == "feed-forward":
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


def test_whatever_drops_between_the_layers_is_asked(calls: list[str]) -> None:
    """Dropout that stays on in evaluation, and what somebody put in its place."""

    class Doubled(nn.Module):
        p = 0.0

        def forward(self, x: Tensor) -> Tensor:
            return 2 * x

    module, x = made("feed-forward")
    module.drop = nn.Dropout(0.5)
    module.eval()
    module.drop.train()
    assert not torch.equal(module(x, H, W), module(x, H, W))
    for drop in (Doubled(), nn.Identity()):
        module.drop = drop
        module.train()
        with use_backend("reference"):
            expected = module(x, H, W)
        close(module(x, H, W), expected)
    assert not calls


def test_frozen_layers_cost_no_backward_pass(
    calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError("nobody asked for that")

    for name in ("reduced_kv_attention_backward", "sar_mixer_backward"):
        monkeypatch.setitem(_joined_layers._registration._implementations, name, refuse)
    for name, last in (("attention of all", "proj"), ("feed-forward", "fc2")):
        module, x = made(name)
        module.requires_grad_(False)
        getattr(module, last).requires_grad_(True)
        module(x.detach(), H, W).sum().backward()
        assert getattr(module, last).weight.grad is not None
    assert len(calls) == 2


def test_parameters_are_asked_for_once(calls: list[str]) -> None:
    class Counted(nn.Module):
        times = 0

        def forward(self, weight: Tensor) -> Tensor:
            self.times += 1
            return 1.0 * weight

    module, x = made("feed-forward")
    counted = Counted()
    nn.utils.parametrize.register_parametrization(module.sar, "weight", counted)
    for backend in ("auto", "reference"):
        counted.times = 0
        with use_backend(backend), torch.no_grad():
            module(x, H, W)
        assert counted.times == 1
        counted.times = 0
        with use_backend(backend):
            module(x, H, W)
        assert counted.times == 1


@pytest.mark.parametrize("name", ["attention", "feed-forward"])
def test_batches_of_gradients_have_no_graph(calls: list[str], name: str) -> None:
    module, x = made(name)
    weight = next(layer for layer in module.modules() if type(layer) is nn.Linear).weight
    batch = torch.randn(2, *x.shape)
    found = torch.autograd.grad(module(x, H, W), weight, batch, is_grads_batched=True)[0]
    assert not found.requires_grad
    for one, grad in zip(found, batch, strict=True):
        close(one, torch.autograd.grad(module(x, H, W), weight, grad)[0])


def test_kept_tensors_may_come_back_in_another_order(calls: list[str]) -> None:
    def turned(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor

    for name in ("attention of all", "feed-forward"):
        module, x = made(name)
        leaves = [x, *module.parameters()]
        expected = torch.autograd.grad(module(x, H, W).square().sum(), leaves)
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, turned):
            y = module(x, H, W)
        for one, other in zip(torch.autograd.grad(y.square().sum(), leaves), expected, strict=True):
            close(one, other)
    assert len(calls) == 4


def test_attention_drops_its_result(calls: list[str]) -> None:
    module = attention(proj_drop=0.5)
    y = module(torch.randn(2, H * W, C), H, W)
    assert 0.4 < float((y == 0).float().mean()) < 0.6
    assert len(calls) == 1


def replaced(name: str, path: str, shape: tuple[int, ...]) -> nn.Module:
    module, _ = made(name)
    owner, _, key = path.rpartition(".")
    setattr(module.get_submodule(owner), key, nn.Parameter(torch.zeros(shape)))
    return module


#: A kernel would read beyond the end of each, or divide by nothing.
MISFITS: dict[str, Callable[[], nn.Module]] = {
    "a second layer of other inputs": lambda: replaced("feed-forward", "fc2.weight", (C, C)),
    "another bias": lambda: replaced("attention", "q.bias", (2,)),
    "other keys": lambda: replaced("attention", "kv.weight", (C, C)),
    "a bias of kernels": lambda: replaced("feed-forward", "sar.pointwise.bias", (2,)),
    "large kernels": lambda: replaced(
        "feed-forward without a static kernel", "sar.weight", (3, 3 * C, 9, 9)
    ),
    "no keys": lambda: cut(0),
    "keys of one image": lambda: cut(1),
    "heads too wide": lambda: EfficientAttention(C * 4, 1, sr_ratio=2),
}


def cut(images: int) -> nn.Module:
    """Attention whose keys are of so many images, or of none of their tokens."""

    class Cut(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            x = super().forward(x)
            return x[:images] if images else x[:, :0]

    module, _ = made("attention")
    module.norm = Cut(C)
    return module


@pytest.mark.parametrize("misfit", MISFITS)
def test_misfits_are_refused_as_without_gradients(calls: list[str], misfit: str) -> None:
    module = MISFITS[misfit]()
    width = C * 4 if misfit == "heads too wide" else C
    x = torch.randn(2, H * W, width)
    with pytest.raises((RuntimeError, ValueError)) as without, torch.no_grad():
        module(x, H, W)
    with pytest.raises(type(without.value)):
        module(x, H, W)
    assert not calls
