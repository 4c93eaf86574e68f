"""TransWeather: the official layout, its values step by step, the sizes that fail there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.models import TransWeather, create_model, load_checkpoint
from small_networks import photograph, small
from structured_networks import TransWeatherEncoder
from tolerance import largest, largest_error


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_the_official_counts() -> None:
    with torch.device("meta"):
        network = TransWeather()
    assert count(network.Tenc) == 16_258_304
    assert count(network.Tdec) == 11_954_176
    assert count(network.convtail) == 9_839_379
    assert count(network.clean) == 219
    assert count(network) == 38_052_078


def names(prefix: str, *leaves: str) -> set[str]:
    return {f"{prefix}.{leaf}.{kind}" for leaf in leaves for kind in ("weight", "bias")}


def block(prefix: str, *, reduced: bool, queries: bool = False) -> set[str]:
    attention = ["q", "kv", "proj", *(["sr", "norm"] if reduced else [])]
    return (
        names(prefix, "norm1", "norm2", "mlp.fc1", "mlp.dwconv.dwconv", "mlp.fc2")
        | names(f"{prefix}.attn", *attention)
        | ({f"{prefix}.attn.task_query"} if queries else set())
    )


def test_the_official_names() -> None:
    expected: set[str] = set()
    for i in range(1, 5):
        expected |= names("Tenc", f"patch_embed{i}.proj", f"patch_embed{i}.norm", f"norm{i}")
        expected |= names("Tenc", f"mini_patch_embed{i}.proj", f"mini_patch_embed{i}.norm")
        for j in range(2):
            expected |= block(f"Tenc.block{i}.{j}", reduced=i < 4)
    for i in range(1, 4):
        expected |= names("Tenc", f"pnorm{i}") | block(f"Tenc.patch_block{i}.0", reduced=True)
    expected |= names("Tdec", "patch_embed1.proj", "patch_embed1.norm", "norm1")
    for j in range(3):
        expected |= block(f"Tdec.block1.{j}", reduced=False, queries=True)
    for factor in (32, 16, 8, 4, 2, 1):
        expected |= names("convtail", f"convd{factor}x.conv2d")
    for i in range(1, 5):
        expected |= names("convtail", f"dense_{i}.0.conv1.conv2d", f"dense_{i}.0.conv2.conv2d")
    expected |= names("convtail", "conv_output.conv2d") | names("clean", "conv2d")
    with torch.device("meta"):
        state = TransWeather().state_dict()
    assert set(state) == expected
    shapes = {
        "Tenc.mini_patch_embed4.proj.weight": (512, 64, 3, 3),
        "Tenc.patch_block3.0.attn.sr.weight": (512, 512, 2, 2),
        "Tdec.block1.0.attn.task_query": (1, 48, 512),
        "Tdec.block1.2.mlp.dwconv.dwconv.weight": (2048, 1, 3, 3),
        "convtail.convd16x.conv2d.weight": (512, 320, 4, 4),
        "convtail.convd1x.conv2d.weight": (16, 8, 4, 4),
    }
    assert {name: tuple(state[name].shape) for name in shapes} == shapes


def test_an_official_checkpoint_loads_unchanged(tmp_path: Path) -> None:
    network = small("TransWeather")
    torch.save({f"module.{k}": v for k, v in network.state_dict().items()}, tmp_path / "best")
    fresh = TransWeather(network.config)
    load_checkpoint(fresh, tmp_path / "best")
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


# ---- values ------------------------------------------------------------------------------------


def test_the_encoder_is_the_published_one() -> None:
    theirs = TransWeatherEncoder()
    ours = TransWeather(
        small("TransWeather").config.replace(
            dims=(16, 32, 80, 128), depths=(1, 1, 1, 1), heads=(1, 2, 4, 4), intra_heads=(1, 2, 2)
        )
    ).Tenc
    state = {k: v for k, v in ours.state_dict().items() if not k.startswith("mini_patch_embed4")}
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    theirs.load_state_dict(state)
    image = photograph(80, 112, n=2)
    with torch.no_grad():
        for one, other in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def plain_queries(state: dict[str, Tensor], p: str, x: Tensor, heads: int) -> Tensor:
    """Tdec's attention: learned queries, stretched by PyTorch's own nearest interpolation."""
    n, length, dim = x.shape

    def linear(name: str, x: Tensor) -> Tensor:
        return F.linear(x, state[f"{p}.{name}.weight"], state[f"{p}.{name}.bias"])

    queries = state[f"{p}.task_query"].repeat(n, 1, 1)
    q = linear("q", queries).unflatten(2, (heads, -1)).transpose(1, 2)
    k, v = linear("kv", x).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    q = F.interpolate(q, size=(length, dim // heads))
    weights = (q @ k.transpose(2, 3) * (dim // heads) ** -0.5).softmax(-1)
    return linear("proj", (weights @ v).transpose(1, 2).reshape(n, length, dim))


def plain_feed_forward(state: dict[str, Tensor], p: str, x: Tensor, h: int, w: int) -> Tensor:
    z = F.linear(x, state[f"{p}.fc1.weight"], state[f"{p}.fc1.bias"]).transpose(1, 2)
    kernel = state[f"{p}.dwconv.dwconv.weight"]
    z = z.reshape(*z.shape[:2], h, w)
    z = F.conv2d(z, kernel, state[f"{p}.dwconv.dwconv.bias"], padding=1, groups=len(kernel))
    z = F.gelu(z).flatten(2).transpose(1, 2)
    return F.linear(z, state[f"{p}.fc2.weight"], state[f"{p}.fc2.bias"])


def plain_tdec(state: dict[str, Tensor], image: Tensor, blocks: int, heads: int) -> Tensor:
    def norm(name: str, x: Tensor, eps: float) -> Tensor:
        weight = state[f"Tdec.{name}.weight"]
        return F.layer_norm(x, weight.shape, weight, state[f"Tdec.{name}.bias"], eps)

    embed = "Tdec.patch_embed1.proj"
    image = F.conv2d(image, state[f"{embed}.weight"], state[f"{embed}.bias"], 2, 1)
    h, w = image.shape[2:]
    x = norm("patch_embed1.norm", image.flatten(2).transpose(1, 2), 1e-5)
    for i in range(blocks):
        p = f"block1.{i}"
        x = x + plain_queries(state, f"Tdec.{p}.attn", norm(f"{p}.norm1", x, 1e-6), heads)
        x = x + plain_feed_forward(state, f"Tdec.{p}.mlp", norm(f"{p}.norm2", x, 1e-6), h, w)
    return norm("norm1", x, 1e-6).transpose(1, 2).reshape(*image.shape)


def plain_decoder(state: dict[str, Tensor], stages: list[Tensor], x: Tensor) -> Tensor:
    def up(name: str, x: Tensor) -> Tensor:
        p = f"convtail.{name}.conv2d"
        return F.conv_transpose2d(x, state[f"{p}.weight"], state[f"{p}.bias"], 2, 1)

    def conv(p: str, x: Tensor) -> Tensor:
        return F.conv2d(x, state[f"{p}.conv2d.weight"], state[f"{p}.conv2d.bias"], padding=1)

    def dense(i: int, x: Tensor) -> Tensor:
        p = f"convtail.dense_{i}.0"
        return x + 0.1 * conv(f"{p}.conv2", F.relu(conv(f"{p}.conv1", x)))

    def cropped(x: Tensor, skip: Tensor) -> Tensor:
        return x[:, :, : skip.shape[2], : skip.shape[3]]

    f1, f2, f3, f4 = stages
    x = cropped(up("convd32x", x), f4) + f4
    x = dense(4, cropped(up("convd16x", x), f3)) + f3
    x = dense(3, up("convd8x", x)) + f2
    x = dense(2, up("convd4x", x)) + f1
    x = up("convd1x", dense(1, up("convd2x", x)))
    return torch.tanh(conv("clean", x))


@pytest.mark.parametrize("size", [(48, 80), (64, 64), (112, 176), (512, 448)], ids=str)
@torch.no_grad()
def test_computes_what_the_official_code_computes(size: tuple[int, int]) -> None:
    """On the sizes it takes, without any padding; the last has more tokens than queries."""
    network, image = small("TransWeather"), photograph(*size, n=2)
    state, config = network.state_dict(), network.config
    stages = network.Tenc(image * 2 - 1)
    deepest = plain_tdec(state, stages[3], config.query_blocks, config.query_heads)
    expected = plain_decoder(state, stages, deepest)
    got = network(image)
    assert got.shape == image.shape
    assert largest_error(got, expected) <= 1e-5 * largest(expected)


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size",
    [(n, n) for n in (16, 32, 36, 40, 100, 248, 264, 270)] + [(250, 333)],
    ids=str,
)
@torch.no_grad()
def test_sizes_that_fail_in_the_official_code(size: tuple[int, int]) -> None:
    network = small("TransWeather")
    y, residuals = network(photograph(*size), return_residuals=True)
    assert y.shape == (1, 3, *size)
    assert y.isfinite().all()
    assert residuals == []


def test_sizes_it_takes_are_not_padded() -> None:
    network = create_model("transweather", dims=(8, 16, 16, 32), decoder_tail=(8, 4))
    assert (network.size_multiple, network.minimum_size) == (16, 48)


def test_it_takes_no_prior() -> None:
    network, image = small("TransWeather"), photograph(48, 48)
    assert network.encode_prior(image) is None
    with pytest.raises(ValueError, match="TransWeather uses no prior: prior must be None"):
        network(image, torch.zeros(1, 512))
