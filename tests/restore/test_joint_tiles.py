"""Tiles that wait for each other attend to the whole picture, and leave nothing behind."""

from __future__ import annotations

import gc
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from clipweather_fast.models import create_model
from clipweather_fast.modules import EfficientAttention
from clipweather_fast.modules._joint import in_step, joined_keys, joined_rims
from clipweather_fast.ops import _native, use_backend
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.restore import PrecisionWarning, Restorer, engine, joint_tiles
from clipweather_fast.restore.footprint import fake_trace
from clipweather_fast.restore.memory import Estimate
from known_networks import tiny_network
from small_networks import small


class Attentive(nn.Module):
    """Attention over patches of 4 × 4 pixels, twice, and nothing else that looks aside."""

    size_multiple = 32

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 16, 4, stride=4)
        self.attention = nn.ModuleList(EfficientAttention(16, 2, ratio) for ratio in (8, 2))
        self.out = nn.ConvTranspose2d(16, 3, 4, stride=4)
        for layer in self.attention:  # of an effect that can be seen
            layer.kv.weight.data.mul_(30)
        self.calls = 0

    def forward(self, image: Tensor) -> Tensor:
        self.calls += 1
        x = self.embed(image)
        tokens = x.flatten(2).transpose(1, 2)
        for attention in self.attention:
            tokens = tokens + attention(tokens, *x.shape[2:])
        return image + self.out(tokens.transpose(1, 2).view_as(x))


@pytest.fixture
def picture() -> Tensor:
    torch.manual_seed(1)
    # Brighter to one side: tiles that judge by themselves come out differently.
    return torch.rand(3, 224, 320) * torch.linspace(0.2, 1, 320)


def test_attention_over_tiles_is_attention_over_the_picture(picture: Tensor) -> None:
    network = Attentive()
    whole = Restorer(network, tile=None)(picture)
    restorer = Restorer(network, tile=128)
    joint = restorer(picture)
    assert restorer.report.passes > 1
    torch.testing.assert_close(joint, whole, rtol=1e-5, atol=1e-5)
    restorer._engine._joins = False
    assert (restorer(picture) - whole).abs().max() > 1e-2


@pytest.mark.parametrize("overlap", [0, 32, 64])
def test_every_place_gives_its_keys_once(overlap: int) -> None:
    """Keys of all tiles together are the whole picture's, whatever tiles share."""

    class Numbers(nn.Module):
        """Gives each place of 32 × 32 pixels the number written there."""

        size_multiple = 32
        found: list[Tensor] = []

        def __init__(self) -> None:
            super().__init__()
            self.attention = EfficientAttention(4, 1)  # so that tiles wait

        def forward(self, image: Tensor) -> Tensor:
            grid = image[:, :1, ::32, ::32]
            tokens = grid.flatten(2).transpose(1, 2)
            self.found.append(joined_keys(self.attention, tokens, *grid.shape[2:]))
            return image

    places = torch.arange(7 * 10).float().view(1, 7, 10) / 70
    picture = places.repeat_interleave(32, 1).repeat_interleave(32, 2).repeat(3, 1, 1)
    network = Numbers()
    network.found = []
    Restorer(network, tile=192, tile_overlap=overlap)(picture)
    assert len(network.found) > 1
    for keys in network.found:
        torch.testing.assert_close(keys.flatten().sort().values, places.flatten())


@pytest.mark.parametrize(("stride", "overlap"), [(4, 0), (16, 64), (32, 0), (32, 32), (64, 64)])
def test_rims_come_from_the_tiles_that_own_them(stride: int, overlap: int) -> None:
    class Worn(nn.Module):
        """Says of every place which one it is, and forgets it at its own rims."""

        size_multiple = 32
        shared_by_tiles = 64
        forgotten: list[Tensor] = []

        def __init__(self) -> None:
            super().__init__()
            self.attention = EfficientAttention(4, 1)  # so that tiles wait

        def forward(self, image: Tensor) -> Tensor:
            true = image[:, :1, ::stride, ::stride]
            worn = torch.full_like(true, -1)
            worn[:, :, 1:-1, 1:-1] = true[:, :, 1:-1, 1:-1]
            twice = (worn * 2).contiguous(memory_format=torch.channels_last)
            joined_rims(self, worn, twice)
            assert torch.equal(twice, worn * 2)
            assert ((worn == true) | (worn == -1)).all()
            self.forgotten.append(true[worn == -1])
            return image

    places = torch.arange(224 * 320).float() / 71680
    network = Worn()
    network.forgotten = []
    restorer = Restorer(network, tile=192, tile_overlap=overlap, dtype="float32")
    restorer(places.view(1, 224, 320).repeat(3, 1, 1))
    assert restorer.report.passes > 1
    number = torch.cat(network.forgotten).mul(71680).round().long()
    row, column = number // 320, number % 320
    inside = (row > 0) & (row < 224 - stride) & (column > 0) & (column < 320 - stride)
    # Tiles begin at multiples of 32: between the places of a grid of stride 64 nobody can help.
    assert inside.any() == (stride > 32)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_the_networks_see_in_tiles_what_they_see_in_the_whole(backend: str) -> None:
    network = tiny_network(prior_encoder="none")
    with torch.no_grad():
        for parameter in network.parameters():  # of an effect that can be seen
            if parameter.dim() > 1:
                parameter.mul_(2)
    picture = torch.rand(3, 500, 640)
    with use_backend(backend):
        whole, tiles = Restorer(network, tile=None), Restorer(network, tile=256)
        expected = whole(picture)
        torch.testing.assert_close(tiles(picture), expected, rtol=0, atol=2e-5)
        assert tiles.report.tile == 256
        tiles._engine._joins = False
        assert (tiles(picture) - expected).abs().max() > 0.02


def test_keys_of_a_large_picture_are_averaged(
    picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths: list[int] = []
    network = Attentive()
    ask = network.attention[0].forward

    def forward(x: Tensor, H: int, W: int) -> Tensor:
        lengths.append(joined_keys(network.attention[0], x, H, W).shape[1])
        return ask(x, H, W)

    monkeypatch.setattr(network.attention[0], "forward", forward)
    Restorer(network, tile=128)(picture)
    every = set(lengths)
    lengths.clear()
    monkeypatch.setattr(joint_tiles, "MOST_PIXELS", 224 * 320 / 4)
    Restorer(network, tile=128)(picture)
    assert every == {56 * 80}
    assert set(lengths) == {56 * 80 // 4}


def test_a_value_that_is_not_finite_begins_all_tiles_again_in_float32(picture: Tensor) -> None:
    class Overflowing(Attentive):
        def forward(self, image: Tensor) -> Tensor:
            fifth = self.calls == 4
            y = super().forward(image)
            return y / 0 if fifth and torch.is_autocast_enabled("cpu") else y

    network = Overflowing()
    restorer = Restorer(network, tile=128, dtype="bfloat16")
    with pytest.warns(PrecisionWarning, match="computed again in float32"):
        found = restorer(picture)
    assert restorer.report.retries == 1
    expected = Restorer(Attentive(), tile=128, dtype="float32")(picture)
    torch.testing.assert_close(found, expected)


def test_an_error_in_one_tile_ends_all(picture: Tensor) -> None:
    class Failing(Attentive):
        left = 0

        def forward(self, image: Tensor) -> Tensor:
            type(self).left += 1
            fifth = self.calls == 4
            try:
                y = super().forward(image)
                if fifth:
                    raise KeyError("broken")
                return y
            finally:
                type(self).left -= 1

    with pytest.raises(KeyError, match="broken"):
        Restorer(Failing(), tile=128)(picture)
    assert Failing.left == 0


def test_too_little_memory_for_waiting_tiles_separates_them(
    picture: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hungry(Attentive):
        """Runs out of memory while tiles wait."""

        def forward(self, image: Tensor) -> Tensor:
            self.inside = getattr(self, "inside", 0) + 1
            try:
                if self.inside > 1:
                    raise torch.OutOfMemoryError("out of memory")
                return super().forward(image)
            finally:
                self.inside -= 1

    restorer = Restorer(Hungry(), tile=128)
    found = restorer(picture)
    assert restorer.report.halvings == 1
    separate = Restorer(Attentive(), tile=128)
    separate._engine._joins = False
    torch.testing.assert_close(found, separate(picture))


def test_what_waits_counts_as_memory() -> None:
    restorer = Restorer(Attentive())
    estimate = restorer._engine._estimate(torch.float32)
    # At least the picture (3 floats a pixel) and the tokens (one): both are there while it waits.
    assert 16 <= estimate.paused <= estimate.per_pixel
    assert Estimate(10.0, 0.0, 4.0).paused_bytes(100) == 600


def test_what_waits_is_the_same_at_small_pictures_as_at_large_ones() -> None:
    """Of the package's networks small pictures are counted: 62 bytes a pixel wait in float32."""
    restorer = Restorer(tiny_network(prior_encoder="none"))
    found = restorer._engine._estimate(torch.float32)
    whole = fake_trace(restorer._engine.model, 1024, 1024, torch.device("cpu"))
    # Counted with fake tensors is the module, whose residual stream lies elsewhere.
    assert 0.9 * whole.paused / 1024**2 <= found.paused <= 1.5 * whole.paused / 1024**2


def test_the_backend_that_was_chosen_holds_in_every_tile(picture: Tensor) -> None:
    seen: list[Any] = []

    class Asking(Attentive):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(requested_backend())
            return super().forward(image)

    with use_backend("reference"):
        Restorer(Asking(), tile=128)(picture)
    assert len(seen) > 1
    assert set(seen) == {"reference"}


def test_autocast_of_a_tile_is_its_own(picture: Tensor) -> None:
    class Casting(Attentive):
        def forward(self, image: Tensor) -> Tensor:
            enabled = self.calls % 2 == 0
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                y = super().forward(image)
                assert torch.is_autocast_enabled("cpu") == enabled
            assert not torch.is_autocast_enabled("cpu")
            return y

    Restorer(Casting(), tile=128, dtype="float32")(picture)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("failure", [MemoryError, KeyboardInterrupt])
def test_tiles_that_are_given_up_leave_no_autocast(
    failure: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks that switch it off inside, as a form does where bfloat16 is slower."""
    monkeypatch.setattr(_native, "bfloat16_pays", lambda: False)
    stored, failures = engine.store, [failure]

    def failing_once(*arguments: Any, **options: Any) -> None:
        if failures:
            raise failures.pop()()  # one that nobody keeps, with the tiles on its way
        stored(*arguments, **options)

    monkeypatch.setattr(engine, "store", failing_once)
    network, image = small(prior_encoder="none"), torch.rand(1, 3, 560, 560)
    tiles = engine.Engine(network, torch.device("cpu"), torch.bfloat16, 128, 32, False)
    with suppress(KeyboardInterrupt):  # out of memory, smaller tiles are tried
        tiles.restore([(image, torch.empty_like(image))])
    assert not failures
    assert tiles.report.passes >= 4
    gc.collect()
    assert not torch.is_autocast_enabled("cpu")


def test_nobody_joins_outside(picture: Tensor) -> None:
    class Nobody:
        def keys(self, layer: nn.Module, tokens: Tensor, height: int, width: int) -> Tensor:
            return tokens * 0

    tokens = torch.ones(1, 4, 2)
    layer = nn.Identity()
    with in_step(Nobody()):
        assert joined_keys(layer, tokens, 2, 2).sum() == 0
    assert joined_keys(layer, tokens, 2, 2) is tokens


def test_integers_too() -> None:
    network = Attentive()
    picture = np.random.default_rng(0).integers(0, 256, (224, 320, 3), dtype=np.uint8)
    whole, joint = (Restorer(network, tile=tile, dtype="float32")(picture) for tile in (None, 128))
    assert np.abs(whole.astype(int) - joint).max() <= 1


@pytest.mark.parametrize(("length", "tile"), [(465, 128), (657, 128), (1297, 256)])
def test_grids_that_are_rounded_up_go_through_in_step(length: int, tile: int) -> None:
    """TransWeather's tiles begin between the places of its deep grids: there nothing is exchanged,
    even of a network that asks for it."""
    torch.manual_seed(0)
    small = {"dims": (16, 16, 16, 16), "heads": (1, 1, 2, 2), "depths": (1, 1, 1, 1)}
    network = create_model("transweather", **small).eval()
    restorer = Restorer(network, tile=tile, dtype="float32")
    for shares in (None, 0):
        restorer._engine._shares = shares
        assert restorer(torch.rand(3, 96, length)).isfinite().all()
        assert restorer.report.passes > 1


def test_what_a_wrapper_mirrors_is_not_mended_from_the_wrong_side() -> None:
    class Ensemble(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network, self.size_multiple = network, 64

        def forward(self, image: Tensor) -> Tensor:
            flipped: Tensor = self.network(image.flip(3)).flip(3)
            return (self.network(image) + flipped) / 2

    network = tiny_network(prior_encoder="none")
    picture = torch.rand(3, 256, 640) * torch.linspace(0.2, 1, 640)
    whole = Restorer(Ensemble(network), tile=None)(picture)
    joint, alone = (Restorer(Ensemble(network), tile=256) for _ in range(2))
    alone._engine._joins = False
    assert (joint(picture) - whole).abs().mean() <= (alone(picture) - whole).abs().mean()


@pytest.mark.parametrize(
    "options", [{"sar_kernel_size": 7}, {"sar_kernel_size": 5, "sar_arrangement": "sequential"}]
)
def test_tiles_share_what_large_kernels_look_at(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    network = tiny_network(prior_encoder="none", **options)
    picture = torch.rand(3, 256, 900)
    for overlap in (0, 32):
        tiles = Restorer(network, tile=384, tile_overlap=overlap)
        whole = Restorer(network, tile=None)
        torch.testing.assert_close(tiles(picture), whole(picture), rtol=0, atol=1e-5)
        assert tiles.report.passes > 1


def test_what_tiles_share_waits_in_each() -> None:
    engine = Restorer(tiny_network(prior_encoder="none"))._engine
    estimate = Estimate(100.0, 0.0, 60.0, 0.0)
    pixels = 4000 * 3000
    sides = [engine._joint_side(estimate, gigabytes << 30, pixels) for gigabytes in (1, 2, 4, 16)]
    assert sides[0] is None
    assert sides[-1] == 2048
    for side, gigabytes in zip(sides, (1, 2, 4, 16), strict=True):
        if side is not None:
            waiting = estimate.paused_bytes(int(pixels * (side / (side - 128)) ** 2))
            assert waiting + estimate.bytes(side**2) <= gigabytes << 30
