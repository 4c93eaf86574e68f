"""ConvMlp and SARFFN: equations, names, memory, words."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.modules import SARFFN, ConvMlp
from clipweather_fast.modules._tokens import as_image, as_tokens
from same_module import assert_same_function, randomised, tokens
from structured_networks import FeedForward

SIZES = [(1, 1), (5, 7), (8, 8), (1, 9)]


class PlainSARFFN(SARFFN):
    """Equations 2 to 5, one tensor at a time."""

    def forward(self, x: Tensor, H: int, W: int, return_residual: bool = False) -> Any:
        z = self.fc1(x).transpose(1, 2).reshape(x.shape[0], -1, H, W)
        static: Any = 0
        if self.arrangement != "direct":
            static = self.static(z)
        z = static if self.arrangement == "sequential" else z
        residual = self.mixed(z)
        hidden = F.gelu(static + self.sign * residual).flatten(2).transpose(1, 2)
        y = self.fc2(hidden)
        return (y, residual) if return_residual else y

    def mixed(self, z: Tensor) -> Tensor:
        sar, channels = self.sar, z.shape[1]
        maps = sar.pointwise(F.gelu(sar.depthwise(z)))
        # One map per kernel; or the kernels' maps of each channel, side by side.
        maps = maps.unflatten(1, (channels if sar.per_channel else 1, sar.num_kernels))
        maps = maps.softmax(2) if sar.gate == "softmax" else maps.sigmoid()
        residual = torch.zeros_like(z)
        for n in range(sar.num_kernels):
            kernel, bias = sar.weight[n].unsqueeze(1), None if sar.bias is None else sar.bias[n]
            mixed = F.conv2d(z, kernel, bias, padding=sar.kernel_size // 2, groups=channels)
            residual = residual + maps[:, :, n] * mixed
        return residual


@pytest.mark.parametrize("size", SIZES)
def test_conv_mlp_computes_its_equation(size: tuple[int, int]) -> None:
    module = randomised(ConvMlp(16, 2))
    assert_same_function(module, FeedForward(16, 32), tokens(2, *size, 16), *size)


@pytest.mark.parametrize("return_residual", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_sar_ffn_computes_its_equation(size: tuple[int, int], return_residual: bool) -> None:
    module = randomised(SARFFN(8, 2))
    plain = PlainSARFFN(8, 2)
    assert_same_function(module, plain, tokens(2, *size, 8), *size, return_residual)


@pytest.mark.parametrize("return_residual", [False, True])
@pytest.mark.parametrize(
    "variant",
    [
        {"arrangement": "sequential"},
        {"arrangement": "direct"},
        {"sign": -1},
        {"sign": -1, "kernel_bias": False},
        {"kernel_size": 5, "gate": "sigmoid"},
        {"per_channel": True},
        {"per_channel": True, "arrangement": "direct", "kernel_bias": False, "kernel_size": 5},
        {"per_channel": True, "arrangement": "sequential", "sign": -1, "gate": "sigmoid"},
    ],
    ids=str,
)
def test_variants_of_sar_ffn_compute_theirs(variant: dict[str, Any], return_residual: bool) -> None:
    module = randomised(SARFFN(8, 2, **variant))
    plain = PlainSARFFN(8, 2, **variant)
    assert_same_function(module, plain, tokens(2, 5, 7, 8), 5, 7, return_residual)


def test_maps_per_channel_start_as_the_mean_of_the_kernels() -> None:
    shared, own = SARFFN(8), SARFFN(8, per_channel=True)
    state = own.state_dict()
    same = {k: v for k, v in shared.state_dict().items() if "pointwise" not in k}
    own.load_state_dict({**state, **same})
    x = tokens(2, 5, 7, 8)
    torch.testing.assert_close(own(x, 5, 7), shared(x, 5, 7))


def test_sar_ffn_adds_the_specification_s_parameters() -> None:
    plain, adaptive = ConvMlp(64, 2), SARFFN(64, 2)
    extra = sum(p.numel() for p in adaptive.parameters()) - sum(
        p.numel() for p in plain.parameters()
    )
    assert extra == 5_507


def test_state_dict_is_the_one_of_transweather() -> None:
    theirs = FeedForward(16, 32)
    ours = ConvMlp(in_features=16, hidden_features=32, act_layer=nn.GELU, drop=0.0)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    missing, unexpected = SARFFN(16, 2).load_state_dict(theirs.state_dict(), strict=False)
    assert unexpected == []
    assert all(name.startswith("sar.") for name in missing)
    x = tokens(1, 4, 6, 16)
    torch.testing.assert_close(ours(x, 4, 6), theirs(x, 4, 6))


def test_tokens_and_images_are_the_same_memory() -> None:
    x = tokens(2, 5, 7, 6)
    image = as_image(x, 5, 7)
    assert image.data_ptr() == x.data_ptr()
    assert image.is_contiguous(memory_format=torch.channels_last)
    back = as_tokens(image)
    assert back.data_ptr() == x.data_ptr()
    assert back.stride() == x.stride()


@pytest.mark.parametrize("make", [ConvMlp, SARFFN])
def test_result_is_dense(make: type[ConvMlp]) -> None:
    assert make(8)(tokens(2, 5, 7, 8), 5, 7).is_contiguous()


@pytest.mark.parametrize("make", [ConvMlp, SARFFN])
def test_autocast_gives_its_dtype(make: type[ConvMlp]) -> None:
    module, x = randomised(make(8)), tokens(2, 5, 7, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x, 5, 7)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), module(x, 5, 7), rtol=0.05, atol=0.1)


@pytest.mark.parametrize("make", [ConvMlp, SARFFN])
def test_dropout_drops_only_in_training(make: type[ConvMlp]) -> None:
    module, x = randomised(make(8, drop=0.5)), tokens(2, 5, 7, 8)
    assert (module.train()(x, 5, 7) == 0).float().mean().item() == pytest.approx(0.5, abs=0.1)
    module.eval()
    assert torch.equal(module(x, 5, 7), module(x, 5, 7))


@pytest.mark.parametrize("make", [ConvMlp, SARFFN])
def test_compiles_as_one_graph(make: type[ConvMlp]) -> None:
    torch.compiler.reset()
    module, x = randomised(make(8)), tokens(1, 4, 6, 8).requires_grad_()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    expected = module(x, 4, 6)
    got = compiled(x, 4, 6)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), x), torch.autograd.grad(expected.sum(), x)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({}, "ConvMlp: give either dim or in_features, got None and None"),
        ({"dim": 8, "in_features": 8}, "ConvMlp: give either dim or in_features, got 8 and 8"),
        ({"dim": -1}, "ConvMlp: dim must be a positive integer, got -1"),
        ({"dim": 8, "mlp_ratio": 0}, "ConvMlp: mlp_ratio must be a positive number, got 0"),
        ({"dim": 8, "drop": 1.0}, "ConvMlp: drop must be a probability in [0, 1), got 1.0"),
        (
            {"dim": 8, "act_layer": nn.ReLU},
            "ConvMlp: act_layer must be nn.GELU (exact), got ReLU()",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole text is compared
        ConvMlp(**arguments)
    assert str(caught.value) == words


def test_wrong_size_is_named() -> None:
    words = r"SARFFN: x must be \(N, L, C\) with L = H·W = 5·6, got \(2, 35, 8\)"
    with pytest.raises(ValueError, match=words):
        SARFFN(8)(tokens(2, 5, 7, 8), 5, 6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"arrangement": "after"},
            "SARFFN: arrangement must be one of parallel, sequential, direct, got 'after'",
        ),
        ({"sign": 2}, "SARFFN: sign must be one of 1, -1, got 2"),
        ({"kernel_size": 4}, "SARConv2d: kernel_size must be one of 3, 5, 7, got 4"),
    ],
)
def test_wrong_variants_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole text is compared
        SARFFN(8, **arguments)
    assert str(caught.value) == words
