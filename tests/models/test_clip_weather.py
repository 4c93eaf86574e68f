"""ClipWeather: exact counts, the prior's path, residual maps, the prior encoder's life."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.models import ClipWeather, ClipWeatherConfig, create_model
from clipweather_fast.models._blocks import Block, DropPath
from clipweather_fast.models._prior_embedding import PriorAttention
from same_module import assert_same_function, randomised, tokens
from small_networks import SMALL_CLIP, FakePriorEncoder, photograph, prior_of, small

#: Parameters of CLIP ViT-B/32's image tower, which the paper's total includes.
VIT_B_32 = 87_849_216


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def made(**changes: Any) -> ClipWeather:
    """A network of the paper's size, without memory behind it."""
    with torch.device("meta"):
        return ClipWeather(ClipWeatherConfig(**changes))


# ---- exact counts ------------------------------------------------------------------------------


def test_the_paper_s_parameters() -> None:
    network = made()
    assert count(network.encoder) == 16_220_577
    assert count(network.prior_embedding) == 11_954_179
    assert count(network.decoder) == 9_839_379
    assert count(network.prior_head) == 525_312
    assert count(network) == 38_539_447
    assert count(network) + VIT_B_32 == 126_388_663


@pytest.mark.parametrize(
    ("changes", "millions"),
    [
        ({"num_kernels": 1}, "126.256"),
        ({"num_kernels": 2}, "126.322"),
        ({"num_kernels": 4}, "126.455"),
        ({"num_kernels": 5}, "126.521"),
        ({"num_kernels": 0}, "126.130"),
        ({"sar_bias": False}, "126.371"),
        ({"sar_per_channel": True}, "126.407"),
        ({"sar_kernel_size": 5}, "126.677"),
        ({"prior_fuse": "concat"}, "126.389"),
        ({"prior_token_std": 0.0}, "126.389"),
        ({"sar_arrangement": "sequential"}, "126.389"),
        ({"intra_patch": False, "depths": (3, 3, 3, 2)}, "121.169"),
    ],
    ids=str,
)
def test_the_specification_s_variants(changes: dict[str, Any], millions: str) -> None:
    assert f"{(count(made(**changes)) + VIT_B_32) / 1e6:.3f}" == millions


def test_without_sar_the_encoder_is_the_base_network_s() -> None:
    assert count(made(num_kernels=0).encoder) == 15_961_856


def test_presets() -> None:
    tiny = create_model("clipweather_tiny")
    assert count(tiny) - count(tiny.get_submodule("prior_encoder")) <= 3_000_000


def test_small_is_a_quarter_of_the_compute() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    from clipweather_fast import use_backend

    def multiply_adds(name: str) -> float:
        network, image = create_model(name).eval(), photograph(256, 256)
        with torch.no_grad(), use_backend("reference"), FlopCounterMode(display=False) as counter:
            network(image, prior_of(network))
        return counter.get_total_flops() / 2e9

    base, quarter = multiply_adds("clipweather_base"), multiply_adds("clipweather_small")
    assert base == pytest.approx(4.79, abs=0.01)
    assert 0.2 <= quarter / base <= 0.3


# ---- the prior ---------------------------------------------------------------------------------


class PlainPriorAttention(PriorAttention):
    """Equations 8 and 9, one tensor at a time."""

    def forward(self, x: Tensor, H: int, W: int, prior: Tensor | None) -> Tensor:
        n, length, dim = x.shape
        embedded = self.tokens.expand(n, -1, -1)
        if prior is not None and self.fuse == "sum":
            embedded = embedded + self.gamma * prior[:, None]
        elif prior is not None:
            embedded = torch.cat([embedded, self.gamma * prior[:, None]], 1)
        q = self.q(x).unflatten(2, (self.num_heads, -1)).transpose(1, 2)
        kv = self.kv(embedded).unflatten(2, (2, self.num_heads, -1))
        k, v = kv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(2, 3) / (dim // self.num_heads) ** 0.5
        out = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, dim)
        return self.proj(out)


@pytest.mark.parametrize("fuse", ["sum", "concat"])
def test_prior_attention_computes_its_equations(fuse: str) -> None:
    config = SMALL_CLIP.replace(prior_fuse=fuse)
    attention, plain = randomised(PriorAttention(config)), PlainPriorAttention(config)
    with torch.no_grad():
        attention.gamma.fill_(0.7)  # type: ignore[union-attr, operator]
    prior = torch.randn(2, config.prior_width, generator=torch.Generator().manual_seed(7))

    class Cast(torch.nn.Module):
        """The prior in the dtype of the tokens, whatever precision is judged."""

        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, H: int, W: int) -> Tensor:
            return self.inner(x, H, W, prior.to(x.dtype))

    assert_same_function(Cast(attention), Cast(plain), tokens(2, 3, 5, 32), 3, 5)


@torch.no_grad()
def test_at_gamma_zero_the_prior_has_no_influence() -> None:
    image, network = photograph(64, 64), small()
    one, other = torch.randn(1, 12), torch.randn(1, 12)
    assert not torch.equal(network(image, one), network(image, other))
    for block in network.get_submodule("prior_embedding.block1").children():
        block.attn.gamma.zero_()  # type: ignore[union-attr]
    assert torch.equal(network(image, one), network(image, other))


def test_at_gamma_zero_gamma_learns_first() -> None:
    network = ClipWeather(SMALL_CLIP.replace(gamma_init=0.0))
    network(photograph(128, 192), prior_of(network)).square().sum().backward()
    for block in network.prior_embedding.block1:
        assert block.attn.gamma.grad != 0
    assert network.prior_head.fc1.weight.grad is not None
    assert (network.prior_head.fc1.weight.grad == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("how", [True, "gated"])
def test_with_the_picture_added_a_new_network_is_the_identity(how: bool | str) -> None:
    network = ClipWeather(SMALL_CLIP.replace(residual_output=how)).eval()
    image = photograph(50, 70, n=2)
    torch.testing.assert_close(network(image, prior_of(network, 2)), image, rtol=0, atol=3e-7)


def test_the_picture_is_added_to_what_the_network_computes() -> None:
    plain, adding = small(), small(residual_output=True)
    adding.load_state_dict(plain.state_dict())
    image, prior = photograph(50, 70), prior_of(plain)
    torch.testing.assert_close(adding(image, prior), plain(image, prior) + image)


@torch.no_grad()
def test_a_gate_says_how_much_of_the_picture_is_added() -> None:
    gated, plain = small(residual_output="gated"), small()
    state, last = gated.state_dict(), "decoder.conv_output.conv2d"
    weight, bias = state[f"{last}.weight"], state[f"{last}.bias"]
    image, prior = photograph(64, 64), prior_of(plain)
    got = gated(image, prior)

    def lasts(rows: list[int]) -> Tensor:
        """What the last convolution's outputs are after tanh, three of them at a time."""
        chosen = {f"{last}.weight": weight[rows], f"{last}.bias": bias[rows]}
        plain.load_state_dict({**state, **chosen})
        return plain(image, prior)

    expected = lasts([0, 1, 2]) + (1 - lasts([3, 3, 3])) * image
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert float((lasts([3, 3, 3])).abs().max()) > 0.01


def test_one_prior_serves_every_tile() -> None:
    network, images = small(), photograph(64, 64, n=3)
    prior = prior_of(network)
    assert prior is not None
    # Products of one row and of three are not always summed in the same order.
    torch.testing.assert_close(network(images, prior), network(images, prior.expand(3, -1)))


@torch.no_grad()
def test_without_a_prior_encoder_there_is_no_prior() -> None:
    network, image = small(prior_encoder="none"), photograph(20, 30)
    assert network.encode_prior(image) is None
    assert network(image).shape == image.shape
    assert not [name for name in network.state_dict() if "gamma" in name or "prior_head" in name]
    with pytest.raises(ValueError, match="prior_encoder is 'none', so prior must be None"):
        network(image, torch.zeros(1, 12))


# ---- the prior encoder's life ------------------------------------------------------------------


def test_a_frozen_encoder_is_built_when_needed_and_is_no_part(
    built: list[FakePriorEncoder],
) -> None:
    network = ClipWeather(SMALL_CLIP.replace(prior_weights="somewhere"))
    names, image = set(network.state_dict()), photograph(20, 30, n=2).requires_grad_()
    assert built == []
    prior = network.encode_prior(image)
    assert prior is not None
    assert prior.shape == (2, 12)
    assert not prior.requires_grad
    assert [(it.kind, it.weights) for it in built] == [("clip:fake", "somewhere")]
    torch.testing.assert_close(prior, built[0](image.detach()))
    assert set(network.state_dict()) == names
    assert count(network) == count(ClipWeather(SMALL_CLIP))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network.encode_prior(image), prior)
    assert len(built) == 1
    copy.deepcopy(network).encode_prior(image)
    assert len(built) == 1


@torch.no_grad()
def test_forward_computes_the_prior_that_is_missing() -> None:
    network, image = small(), photograph(20, 30)
    prior = network.encode_prior(image)
    assert torch.equal(network(image), network(image, prior))


def test_an_encoder_built_for_inference_serves_training() -> None:
    network, image = small(), photograph(20, 30)
    with torch.inference_mode():
        network(image)
    network(image).sum().backward()


def test_an_encoder_that_learns_is_a_part() -> None:
    network = small(prior_encoder="convolutional:12")
    assert "prior_encoder.linear.weight" in network.state_dict()
    network(photograph(64, 64)).sum().backward()
    for parameter in network.get_submodule("prior_encoder").parameters():
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 0


def test_an_encoder_that_does_not_learn_now_keeps_its_digits() -> None:
    """Of one that learns: with a gradient it computes in autocast's dtype, else in float32."""
    network, image = small(prior_encoder="convolutional:12"), photograph(64, 64)
    with torch.no_grad():
        expected = network.encode_prior(image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        learning = network.encode_prior(image)
        with torch.no_grad():
            got = network.encode_prior(image)
    assert learning is not None
    assert learning.dtype == torch.bfloat16
    assert got is not None
    assert expected is not None
    assert torch.equal(got, expected)


def test_vectors_of_another_length_are_named() -> None:
    network = ClipWeather(SMALL_CLIP.replace(prior_encoder="clip:large"))
    with pytest.raises(
        ValueError, match="of prior_encoder 'clip:large' have length 512, but prior"
    ):
        network.encode_prior(photograph(8, 8))


# ---- residual maps -----------------------------------------------------------------------------


@pytest.mark.parametrize("intra_patch", [True, False])
def test_residual_maps_are_where_they_say(intra_patch: bool) -> None:
    network = small(intra_patch=intra_patch)
    y, residuals = network(photograph(64, 128), prior_of(network), return_residuals=True)
    places = network.residual_places()
    assert [(p.stage, p.intra_patch) for p in places if not p.intra_patch] == [
        (stage, False) for stage in (1, 2, 2, 3, 4)
    ]
    assert len(places) == len(residuals) == (8 if intra_patch else 5)
    for place, residual in zip(places, residuals, strict=True):
        shape = (1, place.channels, 64 // place.stride, 128 // place.stride)
        assert residual.shape == shape
    torch.testing.assert_close(network(photograph(64, 128), prior_of(network)), y)
    grads = torch.autograd.grad(
        sum(r.square().sum() for r in residuals), network.parameters(), (None), allow_unused=True
    )
    assert any(grad is not None for grad in grads)


def test_eleven_maps_in_the_paper_s_network() -> None:
    places = made().residual_places()
    assert [(p.stage, p.channels, p.stride) for p in places] == [
        *[(1, 128, 4)] * 2,
        (1, 256, 8),
        *[(2, 256, 8)] * 2,
        (2, 640, 16),
        *[(3, 640, 16)] * 2,
        (3, 1024, 32),
        *[(4, 1024, 32)] * 2,
    ]


@torch.no_grad()
def test_without_sar_there_are_no_maps() -> None:
    network = small(num_kernels=0)
    _, residuals = network(photograph(64, 64), prior_of(network), return_residuals=True)
    assert residuals == []
    assert network.residual_places() == ()


# ---- stochastic depth and precision ------------------------------------------------------------


def test_drop_path_rates_are_the_specification_s() -> None:
    network = made()
    rates = {
        name.removesuffix(".drop_path"): round(module.rate, 5)
        for name, module in network.named_modules()
        if isinstance(module, DropPath)
    }
    assert [rates[f"encoder.block{i}.{j}"] for i in range(1, 5) for j in range(2)] == [
        round(0.1 * i / 7, 5) for i in range(8)
    ]
    assert [rates[f"encoder.patch_block{i}.0"] for i in (1, 2, 3)] == [0.0, 0.02857, 0.05714]
    assert [rates[f"prior_embedding.block1.{i}"] for i in range(3)] == [0.0, 0.00667, 0.01333]
    assert sum(isinstance(module, Block) for module in network.modules()) == len(rates) == 14


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    y = drop(x)
    kept = y[:, 0, 0] != 0
    assert torch.equal(y, kept[:, None, None] * x / 0.75)
    assert kept.float().mean().item() == pytest.approx(0.75, abs=0.03)
    assert drop.eval()(x) is x


@torch.no_grad()
def test_in_bfloat16_the_picture_is_normalised_first() -> None:
    network, image = small(), photograph(64, 64)
    exact = network(image, prior_of(network))
    network = network.to(torch.bfloat16)
    y = network(image, prior_of(network))
    assert y.dtype == torch.bfloat16
    assert (y - exact).abs().max() <= 0.05 * exact.abs().max()
    whole = image * 2 - 1
    first = network.encoder.patch_embed1.proj
    got: list[Tensor] = []
    first.register_forward_pre_hook(lambda module, arguments: got.append(arguments[0]))
    network(image, prior_of(network))
    assert torch.equal(got[0], whole.bfloat16())


@pytest.mark.parametrize(
    "changes",
    [
        {"sar_arrangement": "sequential"},
        {"sar_arrangement": "direct"},
        {"sar_sign": -1},
        {"sar_per_channel": True},
        {"sar_kernel_size": 5, "sar_gate": "sigmoid", "sar_bias": False},
        {"prior_fuse": "concat", "prior_activation": "relu"},
        {"qkv_bias": False},
        {"intra_patch": False},
        {"residual_output": True},
        {"residual_output": "gated"},
    ],
    ids=str,
)
def test_every_variant_trains(changes: dict[str, Any]) -> None:
    network = small(**changes).train()
    y = network(photograph(128, 192), prior_of(network))
    F.mse_loss(y, torch.zeros_like(y)).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


# ---- words -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.zeros(3, 8, 8),), ValueError, r"image must be \(N, 3, H, W\) .* got \(3, 8, 8\)"),
        ((torch.zeros(1, 1, 8, 8),), ValueError, r"got \(1, 1, 8, 8\)"),
        ((torch.zeros(1, 3, 0, 8),), ValueError, r"N, H, W ≥ 1, got \(1, 3, 0, 8\)"),
        ((torch.zeros(1, 3, 8, 8, dtype=torch.uint8),), TypeError, r"in \[0, 1\], got torch.uint8"),
        (("a.png",), TypeError, "floating-point tensor with values in .* got str"),
        (
            (torch.zeros(2, 3, 8, 8), torch.zeros(3, 12)),
            ValueError,
            r"prior must be \(N or 1, prior_dim\) = \(2 or 1, 12\), got \(3, 12\)",
        ),
        ((torch.zeros(1, 3, 8, 8), torch.zeros(12)), ValueError, r"got \(12,\)"),
        ((torch.zeros(1, 3, 8, 8), torch.zeros(1, 13)), ValueError, r"got \(1, 13\)"),
    ],
    ids=range(8),
)
def test_wrong_arguments_are_named(
    arguments: tuple[Any, ...], error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        small()(*arguments)


def test_the_wrong_configuration_is_named() -> None:
    with pytest.raises(TypeError, match="config must be a ClipWeatherConfig, got dict"):
        ClipWeather({})  # type: ignore[arg-type]
