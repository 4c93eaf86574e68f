"""Halves of blocks as one step of autograd: what the layers compute, and when they are asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clipweather_fast.models._blocks import Block, DropPath
from clipweather_fast.modules import SARFFN, ConvMlp, EfficientAttention, _joined_blocks
from clipweather_fast.modules._joint import in_step
from clipweather_fast.modules._residual_norm import normed, normed_gradients
from clipweather_fast.ops import _native, use_backend

H, W, C = 10, 14, 48
ATTENTION, FEED_FORWARD = "_PlusAttention", "_PlusFeedForward"

ATTENTIONS: dict[str, Callable[[], nn.Module]] = {
    "all": lambda: EfficientAttention(C, 2),
    "reduced": lambda: EfficientAttention(C, 3, 2),
    "cut off": lambda: EfficientAttention(C, 1, 4, False, qk_scale=0.1),
}
FEED_FORWARDS: dict[str, Callable[[], ConvMlp]] = {
    "adaptive": lambda: SARFFN(C, 2.0),
    "one kernel": lambda: SARFFN(C, 2.0, 1, gate="sigmoid", kernel_bias=False, sign=-1),
    "direct": lambda: SARFFN(C, 2.0, arrangement="direct"),
}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The joined steps, in their order."""
    if _native.why_not_loaded():
        pytest.skip("the native core is not there")
    found: list[str] = []
    for name in (ATTENTION, FEED_FORWARD):
        step = getattr(_joined_blocks, name).apply

        def counted(*arguments: object, name: str = name, step: Any = step) -> Tensor:
            found.append(name)
            return step(*arguments)

        monkeypatch.setattr(getattr(_joined_blocks, name), "apply", counted)
    return found


def made(
    attention: str = "reduced", feed_forward: str = "adaptive", rate: float = 0.0
) -> tuple[Block, Tensor]:
    torch.manual_seed(0)
    block = Block(C, ATTENTIONS[attention](), FEED_FORWARDS[feed_forward](), rate)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return block, torch.randn(2, H * W, C, requires_grad=True)


def close(one: Tensor | None, other: Tensor | None) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.shape == other.shape
        atol = 2e-5 * float(other.detach().abs().max())
        torch.testing.assert_close(one, other, rtol=1e-4, atol=atol)


def both_ways(block: Block, x: Tensor, learns: list[Tensor]) -> list[list[Tensor | None]]:
    """Values and gradients as one step, and one by one on plain PyTorch."""
    weights, found = torch.randn(x.shape), []
    for backend in ("auto", "reference"):
        torch.manual_seed(1)
        with use_backend(backend):
            y = block(x, H, W)
            grads = torch.autograd.grad((y * weights).sum(), learns, allow_unused=True)
        found.append([y, *grads])
    return found


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("feed_forward", FEED_FORWARDS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_values_and_gradients(
    calls: list[str], attention: str, feed_forward: str, rate: float
) -> None:
    """With stochastic depth too, which drops the same branches."""
    block, x = made(attention, feed_forward, rate)
    one, other = both_ways(block, x, [x, *block.parameters()])
    assert calls == [ATTENTION, FEED_FORWARD]
    for a, b in zip(one, other, strict=True):
        close(a, b)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("part", ["x", "norm", "attn.q", "attn.kv", "attn.sr", "mlp.sar", "bias"])
def test_frozen_parameters_get_no_gradient(calls: list[str], attention: str, part: str) -> None:
    block, x = made(attention)
    for key, parameter in block.named_parameters():
        parameter.requires_grad_(part in key)
    x = x.detach().requires_grad_(part == "x")
    leaves = [leaf for leaf in (x, *block.parameters()) if leaf.requires_grad]
    if not leaves:
        pytest.skip("this attention has no such part")
    one, other = both_ways(block, x, leaves)
    assert calls == [ATTENTION, FEED_FORWARD]
    for a, b in zip(one, other, strict=True):
        close(a, b)
    block(x, H, W).sum().backward()
    assert all((p.grad is not None) == p.requires_grad for p in block.parameters())


def listened_to(path: str) -> Callable[[Block], None]:
    def prepare(block: Block) -> None:
        block.get_submodule(path).register_forward_hook(lambda *_: None)

    return prepare


def given_a_forward(path: str) -> Callable[[Block], None]:
    def prepare(block: Block) -> None:
        layer = block.get_submodule(path)
        layer.forward = type(layer).forward.__get__(layer)  # type: ignore[method-assign]

    return prepare


def replaced(path: str, make: Callable[[nn.Module], nn.Module]) -> Callable[[Block], None]:
    def prepare(block: Block) -> None:
        owner, _, key = path.rpartition(".")
        setattr(block.get_submodule(owner), key, make(block.get_submodule(path)))

    return prepare


class OwnNorm(nn.LayerNorm):
    """A subclass may do anything."""


class OwnAttention(EfficientAttention):
    """So may this one."""


OF_ATTENTION = ("norm1", "attn", "attn.q", "attn.proj", "attn.sr", "attn.norm", "attn.proj_drop")
OF_FEED_FORWARD = ("norm2", "mlp", "mlp.fc1", "mlp.sar", "mlp.sar.pointwise", "mlp.act", "mlp.drop")

#: What somebody does, and the step that is left as one.
OTHERS: dict[str, tuple[Callable[[Block], None], list[str]]] = {
    **{f"listens to {path}": (listened_to(path), [FEED_FORWARD]) for path in OF_ATTENTION},
    **{f"listens to {path}": (listened_to(path), [ATTENTION]) for path in OF_FEED_FORWARD},
    "listens to drop_path": (listened_to("drop_path"), []),
    "patches norm1": (given_a_forward("norm1"), [FEED_FORWARD]),
    "patches attn": (given_a_forward("attn"), [FEED_FORWARD]),
    "patches mlp": (given_a_forward("mlp"), [ATTENTION]),
    "patches drop_path": (given_a_forward("drop_path"), []),
    "has its own norm1": (replaced("norm1", lambda _: OwnNorm(C)), [FEED_FORWARD]),
    "has its own norm2": (replaced("norm2", lambda _: nn.Identity()), [ATTENTION]),
    "has a norm without bias": (
        replaced("norm1", lambda _: nn.LayerNorm(C, bias=False)),
        [FEED_FORWARD],
    ),
    "has its own attention": (replaced("attn", lambda _: OwnAttention(C, 3)), [FEED_FORWARD]),
    "has no adaptive kernels": (replaced("mlp", lambda _: ConvMlp(C, 2.0)), [ATTENTION]),
    "has its own stochastic depth": (replaced("drop_path", lambda _: nn.Identity()), []),
}


@pytest.mark.parametrize("who", OTHERS)
def test_whoever_has_a_say_meets_the_layers(calls: list[str], who: str) -> None:
    prepare, left = OTHERS[who]
    block, x = made()
    prepare(block)
    one, other = both_ways(block, x, [x, *block.parameters()])
    assert calls == left
    for a, b in zip(one, other, strict=True):
        close(a, b)


def test_whoever_looks_meets_the_layers(calls: list[str]) -> None:
    block, x = made()
    with torch.no_grad():
        block(x, H, W)
    with torch.autocast("cpu", torch.bfloat16):
        block(x, H, W)
    with torch.profiler.profile():
        block(x, H, W)
    block.double()(x.double(), H, W)
    assert not calls
    residuals: list[Tensor] = []
    block.float()(x, H, W, residuals=residuals)
    assert len(residuals) == 1
    assert calls == [ATTENTION]


def test_joined_tiles_ask_for_keys(calls: list[str]) -> None:
    asked: list[str] = []

    class Alone:
        def keys(self, layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
            asked.append("keys")
            return tokens

        def rims(self, layer: object, images: tuple[Tensor, ...]) -> None:
            asked.append("rims")

    block, x = made()
    with in_step(Alone()):
        block(x, H, W)
    assert asked == ["keys", "rims"]
    assert calls == [FEED_FORWARD]


@pytest.mark.parametrize("drop", ["attn_drop", "proj_drop"])
def test_dropout_is_not_left_out(calls: list[str], drop: str) -> None:
    block, x = made()
    block.attn = EfficientAttention(C, 3, **{drop: 0.5})
    block.attn.attn_drop.eval()  # which does not keep attention from dropping
    assert not torch.equal(block(x, H, W), block(x, H, W))
    assert ATTENTION not in calls
    block.eval()
    assert torch.equal(block(x, H, W), block(x, H, W))
    assert calls[-2:] == [ATTENTION, FEED_FORWARD]


def test_wrong_sizes_are_refused_in_the_layers_words(calls: list[str]) -> None:
    block, x = made()
    with pytest.raises(ValueError, match=r"x must be \(N, L, C\)"):
        block(x, H + 1, W)
    with pytest.raises(ValueError, match="must be at least sr_ratio"):
        block(x[:, :W], 1, W)
    assert not calls


def test_second_derivatives_are_those_of_the_layers(calls: list[str]) -> None:
    block, x = made(rate=0.5)
    found = []
    for backend in ("auto", "reference"):
        torch.manual_seed(1)
        with use_backend(backend):
            y = block(x, H, W)
            found += torch.autograd.grad(y.square().sum(), x, create_graph=True)
    close(*found)
    assert calls == [ATTENTION, FEED_FORWARD]
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.autograd.grad(found[0].square().sum(), x)


def test_batches_of_gradients(calls: list[str]) -> None:
    block, x = made(rate=0.5)
    batch, weight = torch.randn(2, *x.shape), block.norm1.weight
    y = block(x, H, W)
    found = torch.autograd.grad(y, weight, batch, is_grads_batched=True, retain_graph=True)[0]
    for one, grad in zip(found, batch, strict=True):
        close(one, torch.autograd.grad(y, weight, grad, retain_graph=True)[0])
    assert calls == [ATTENTION, FEED_FORWARD]


def test_recomputed_activations(calls: list[str]) -> None:
    block, x = made(rate=0.5)
    leaves, results = [x, *block.parameters()], []
    for recomputed in (False, True):
        torch.manual_seed(1)
        y = checkpoint(block, x, H, W, use_reentrant=False) if recomputed else block(x, H, W)
        results.append(torch.autograd.grad(y.square().mean(), leaves))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
    assert len(calls) == 6


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_kept_tensors_may_come_back_in_another_order(calls: list[str], attention: str) -> None:
    def turned(tensor: Tensor) -> Tensor:
        return tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor

    block, x = made(attention)
    leaves = [x, *block.parameters()]
    expected = torch.autograd.grad(block(x, H, W).square().sum(), leaves)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, turned):
        y = block(x, H, W)
    for one, other in zip(torch.autograd.grad(y.square().sum(), leaves), expected, strict=True):
        close(one, other)
    assert len(calls) == 4


def test_weights_in_either_order_of_memory(calls: list[str]) -> None:
    """The reduction's weight is rows of windows where it is channels-last, and is turned else."""
    block, x = made()
    expected = torch.autograd.grad(block(x, H, W).square().sum(), list(block.parameters()))
    block = block.to(memory_format=torch.channels_last)
    found = torch.autograd.grad(block(x, H, W).square().sum(), list(block.parameters()))
    for one, other in zip(found, expected, strict=True):
        close(one, other)
    assert len(calls) == 4


def test_inputs_are_left_as_they_are(calls: list[str]) -> None:
    """The branch's memory takes the sum, and gradients that others hold are not added to."""
    block, x = made("all")
    given, before = torch.randn(x.shape), x.detach().clone()
    grad_y = given.clone()
    block(x, H, W).backward(grad_y)
    assert torch.equal(grad_y, given)
    assert torch.equal(x, before)
    assert len(calls) == 2


def test_a_rate_of_one_image_keeps_its_scale() -> None:
    torch.manual_seed(0)
    kept = DropPath(0.25).kept(torch.zeros(400, 3, 2))
    assert kept is not None
    assert kept.shape == (400, 1, 1)
    assert sorted({*kept.flatten().tolist()}) == pytest.approx([0.0, 4 / 3])
    assert DropPath(0.25).eval().kept(torch.zeros(4, 3)) is None


# ---- the normalisation's kernels, by themselves --------------------------------------------------


@pytest.mark.parametrize("channels", [1, 5, 16, 33, 64, 100, 128, 320])
@pytest.mark.parametrize("rows", [1, 7, 256, 601])
def test_gradients_of_the_normalisation(rows: int, channels: int) -> None:
    if _native.why_not_loaded():
        pytest.skip("the native core is not there")
    torch.manual_seed(0)
    x = 3 * torch.randn(1, rows, channels) + 2
    weight, bias = torch.randn(channels), torch.randn(channels)
    grad_y, residual = torch.randn(x.shape), torch.randn(x.shape)
    wide = [t.double().requires_grad_() for t in (x, weight, bias)]
    truth = F.layer_norm(wide[0], (channels,), wide[1], wide[2], 1e-2)
    expected = list(torch.autograd.grad(truth, wide, grad_y.double()))
    torch.testing.assert_close(normed(x, weight, bias, 1e-2).double(), truth, rtol=1e-5, atol=1e-5)

    def found(*wanted: bool, residual: Tensor | None = None) -> tuple[Tensor | None, ...]:
        return normed_gradients(grad_y, x, weight, 1e-2, wanted, residual)

    whole = found(True, True, True)
    for one, other in zip(whole, expected, strict=True):
        assert one is not None
        atol = 1e-6 * max(float(other.abs().max()), rows**0.5)  # sums over rows cancel
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=atol)
    for which in range(3):
        alone = found(*(which == i for i in range(3)))
        assert [one is not None for one in alone] == [which == i for i in range(3)]
        assert torch.equal(alone[which], whole[which])  # type: ignore[arg-type]
    plus = found(True, False, False, residual=residual)[0]
    assert whole[0] is not None
    torch.testing.assert_close(plus, whole[0] + residual, rtol=1e-6, atol=1e-6)
    assert found(False, False, False) == (None, None, None)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        for one, other in zip(found(True, True, True), whole, strict=True):
            assert torch.equal(one, other)  # type: ignore[arg-type]
    finally:
        torch.set_num_threads(threads)
