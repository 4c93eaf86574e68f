"""Synthesised weather: the same for the same seed, physical, as strong as the benchmarks'."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from clipweather_fast.data import synthesis
from clipweather_fast.data.synthesis import WEATHERS, Rain, Raindrops, Snow, degrade, parameters
from clipweather_fast.data.synthesis.haze import Haze, depth, transmission
from clipweather_fast.data.synthesis.rain import rained
from clipweather_fast.data.synthesis.raindrops import DropLayer, spattered
from clipweather_fast.data.synthesis.random_numbers import Draws, key, uniform
from clipweather_fast.data.synthesis.snow import fallen

CPU = torch.device("cpu")
EXAMPLES = Path(__file__).parents[2] / "examples"
RENDERERS = {"snow": fallen, "rain": rained, "raindrop": spattered}


@pytest.fixture(scope="module")
def photograph() -> Tensor:
    """The example photograph, (1, 3, 400, 600) in [0, 1]."""
    pixels = np.asarray(Image.open(EXAMPLES / "coffee.jpg"), np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous()


def gray(height: int = 96, width: int = 128, level: float = 0.3, number: int = 1) -> Tensor:
    return torch.full((number, 3, height, width), level)


def psnr(a: Tensor, b: Tensor) -> float:
    return -10 * math.log10(float((a.double() - b.double()).square().mean()))


# ---- random numbers ----------------------------------------------------------------------------


def test_random_numbers_are_uniform_and_unrelated() -> None:
    numbers = uniform([key(0, "a"), key(1, "a"), key(0, "b")], 4, 20_000, CPU).double()
    assert numbers.shape == (4, 3, 20_000)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    rows = numbers.reshape(12, -1)
    torch.testing.assert_close(rows.mean(1), torch.full((12,), 0.5).double(), atol=0.01, rtol=0)
    torch.testing.assert_close(rows.var(1), torch.full((12,), 1 / 12).double(), atol=0.003, rtol=0)
    related = torch.corrcoef(rows) - torch.eye(12)
    assert related.abs().max() < 0.04
    after = torch.corrcoef(torch.stack([rows[0, 1:], rows[0, :-1]]))[0, 1]
    assert abs(after) < 0.04


def test_a_random_number_depends_on_its_key_its_channel_and_its_place_alone() -> None:
    many = uniform([5, 6, 7], 5, 100, CPU)
    torch.testing.assert_close(uniform([6], 3, 40, CPU)[:, 0], many[:3, 1, :40], rtol=0, atol=0)


def test_random_numbers_stay_what_they_are() -> None:
    # Pairs that people have written must come out again from a later version.
    assert key(0) == 2926543089
    assert key(-1, "snow", 3) == 269768402
    assert Draws(key(7, "x")).unit() == 0.4705619812011719
    assert uniform([key(7)], 2, 2, CPU).tolist() == [
        [[0.13911867141723633, 0.411416232585907]],
        [[0.44721686840057373, 0.9334410429000854]],
    ]


def test_keys_of_large_negative_and_neighbouring_seeds_differ() -> None:
    seeds = [0, 1, -1, 2**31, 2**32, 2**32 + 1, 2**63 - 1, -(2**63)]
    assert len({key(seed, "x") for seed in seeds}) == len(seeds)
    assert len({key(seed, "x") for seed in range(5000)}) > 4990
    assert key(3, "x", 0) != key(3, "x", 1) != key(3, "y", 1)


# ---- determinism -------------------------------------------------------------------------------


@pytest.mark.parametrize("weather", WEATHERS)
def test_a_sample_is_the_same_whatever_its_batch(weather: str) -> None:
    clean = torch.rand(5, 3, 70, 90, generator=torch.Generator().manual_seed(0))
    seeds = torch.arange(5) + 40
    together = degrade(clean, [weather] * 5, seeds)
    for n in (0, 3):
        alone = degrade(clean[n : n + 1], [weather], seeds[n : n + 1])
        assert torch.equal(alone[0], together[n])
    turned = degrade(clean.flip(0), [weather] * 5, seeds.flip(0))
    assert torch.equal(turned.flip(0), together)
    assert (degrade(clean, [weather] * 5, seeds + 100) != together).any()


@pytest.mark.parametrize("weather", WEATHERS)
def test_a_batch_drawn_at_once_as_on_a_gpu_equals_pictures_drawn_alone(weather: str) -> None:
    clean = torch.rand(4, 3, 64, 80, generator=torch.Generator().manual_seed(1))
    drawn = [parameters(weather, seed, (64, 80)) for seed in range(4)]
    keys = [key(seed, weather) for seed in range(4)]
    together = RENDERERS[weather](clean, keys, drawn)
    # Sums of one order, but vectors of other lengths: exp and the like may differ in the last bit.
    torch.testing.assert_close(together, degrade(clean, [weather] * 4, range(4)), atol=2e-6, rtol=0)


def test_mixed_batches_follow_the_labels() -> None:
    clean = torch.rand(4, 3, 40, 40, generator=torch.Generator().manual_seed(2))
    labels = torch.tensor([2, -1, 0, 1])
    seen = degrade(clean, labels, [7, 8, 9, 10])
    assert torch.equal(seen, degrade(clean, ["raindrop", "clear", "snow", "rain"], [7, 8, 9, 10]))
    assert torch.equal(seen[1], clean[1])
    assert torch.equal(seen[2:3], synthesis.snow(clean[2:3], [9]))
    assert torch.equal(seen[3:], synthesis.rain(clean[3:], [10]))
    assert torch.equal(seen[:1], synthesis.raindrops(clean[:1], [7]))


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_that_tensors_have_by_default_does_not_matter(
    weather: str, dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    clean = torch.rand(1, 3, 60, 80, generator=torch.Generator().manual_seed(3))
    expected = degrade(clean, [weather], [5])
    default_dtype(dtype)
    assert torch.equal(degrade(clean, [weather], [5]), expected)


def test_threads_and_layout_do_not_matter(photograph: Tensor) -> None:
    clean = photograph[:, :, :200, :200]
    threads = torch.get_num_threads()
    try:
        for weather in WEATHERS:
            torch.set_num_threads(1)
            one = degrade(clean.contiguous(), [weather], [3])
            torch.set_num_threads(2)
            two = degrade(clean.to(memory_format=torch.channels_last), [weather], [3])
            torch.testing.assert_close(one, two, atol=2e-6, rtol=0)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_same_pixels(photograph: Tensor) -> None:
    clean = photograph[:, :, :256, :256].expand(6, -1, -1, -1).contiguous()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    here = degrade(clean, labels, range(6))
    there = degrade(clean.cuda(), labels, range(6)).cpu()
    assert (here - there).abs().mean() < 1e-5
    assert (here - there).abs().max() < 1e-2


# ---- shapes, ranges, types ---------------------------------------------------------------------


@pytest.mark.parametrize("weather", WEATHERS)
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (5, 3), (33, 47), (8, 200)])
def test_any_size(weather: str, size: tuple[int, int]) -> None:
    clean = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(3))
    before = clean.clone()
    seen = degrade(clean, [weather] * 2, [0, 1], strength=3)
    assert seen.shape == clean.shape
    assert seen.isfinite().all()
    assert seen.min() >= 0
    assert seen.max() <= 1
    assert torch.equal(clean, before)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    weather=st.sampled_from(WEATHERS),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    level=st.sampled_from([0.0, 0.5, 1.0]),
    strength=st.floats(0, 8),
)
def test_in_range_whatever_is_drawn(
    seed: int, weather: str, height: int, width: int, level: float, strength: float
) -> None:
    clean = gray(height, width, level)
    seen = degrade(clean, [weather], [seed], strength=strength)
    assert seen.isfinite().all()
    assert 0 <= seen.min() <= seen.max() <= 1


def test_empty_batches_and_other_types() -> None:
    assert degrade(torch.rand(0, 3, 8, 8), [], []).shape == (0, 3, 8, 8)
    assert degrade(torch.rand(1, 3, 0, 8), ["snow"], [0]).shape == (1, 3, 0, 8)
    clean = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(4))
    for dtype in (torch.float64, torch.bfloat16):
        seen = degrade(clean.to(dtype), ["rain"], [0])
        assert seen.dtype == dtype
        exact = degrade(clean.to(dtype).float(), ["rain"], [0]).to(dtype)
        assert torch.equal(seen, exact)
    assert not degrade(clean.requires_grad_(), ["snow"], [0]).requires_grad


@pytest.mark.parametrize(
    ("arguments", "options", "error", "words"),
    [
        ((torch.rand(3, 8, 8), ["snow"] * 3, [0] * 3), {}, ValueError, r"clean must be \(N, 3"),
        ((torch.rand(1, 1, 8, 8), ["snow"], [0]), {}, ValueError, r"clean must be \(N, 3"),
        ((torch.zeros(1, 3, 8, 8).byte(), ["snow"], [0]), {}, TypeError, "floating-point"),
        ((gray(), ["fog"], [0]), {}, ValueError, "one of .*'fog'"),
        ((gray(), [3], [0]), {}, ValueError, "got 3"),
        ((gray(), ["snow"], [0, 1]), {}, ValueError, "seeds must have one value for each of 1"),
        ((gray(), [], [0]), {}, ValueError, "weather must have one value"),
        ((gray(), ["snow"], torch.rand(1)), {}, TypeError, "integers"),
        ((gray(), ["snow"], [0]), {"strength": -1.0}, ValueError, "strength"),
        ((gray(), ["snow"], [0]), {"strength": [1.0, 1.0]}, ValueError, "strength"),
        ((gray(), ["snow"], [0]), {"strength": math.nan}, ValueError, "strength"),
        ((gray(), ["snow"], [0]), {"scale": 0.0}, ValueError, "scale"),
    ],
)
def test_errors_say_what_came(
    arguments: tuple[object, ...],
    options: dict[str, object],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        degrade(*arguments, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be one of"):
        parameters("fog", 0, (8, 8))


# ---- physics -----------------------------------------------------------------------------------


@pytest.mark.parametrize("weather", WEATHERS)
def test_no_strength_is_the_identity(weather: str, photograph: Tensor) -> None:
    assert torch.equal(degrade(photograph, [weather], [11], strength=0), photograph)
    both = photograph.expand(2, -1, -1, -1)
    seen = degrade(both, [weather] * 2, [11, 11], strength=torch.tensor([0.0, 1.0]))
    assert torch.equal(seen[0], photograph[0])
    assert (seen[1] != photograph[0]).any()


@pytest.mark.parametrize("weather", WEATHERS)
def test_more_strength_is_more_weather(weather: str, photograph: Tensor) -> None:
    clean = photograph[:, :, :200, :200]
    errors = [
        np.mean([psnr(degrade(clean, [weather], [s], strength=x), clean) for s in range(6)])
        for x in (0.3, 1.0, 3.0)
    ]
    assert errors[0] > errors[1] + 2 > errors[2] + 4


def test_transmission_is_a_share_of_light_and_falls_with_depth() -> None:
    clean = torch.rand(20, 3, 64, 96, generator=torch.Generator().manual_seed(5))
    hazes = [Haze.drawn(seed, (64, 96), 0.2 * seed, (0.5, 1.0)) for seed in range(20)]
    far, clear = depth(clean, hazes), transmission(clean, hazes)
    assert far.shape == clear.shape == (20, 1, 64, 96)
    assert far.min() >= 0
    assert far.max() <= 1
    assert clear.min() > 0
    assert clear.max() <= 1
    assert torch.equal(clear[0], torch.ones(1, 64, 96))
    for n in range(1, 20):
        order = far[n].flatten().argsort()
        assert (clear[n].flatten()[order].diff() <= 1e-6).all()


def test_haze_is_deeper_towards_the_top_of_a_whole_scene() -> None:
    clean = gray(360, 480, number=1)
    drop = []
    for seed in range(30):
        clear = transmission(clean, [Haze.drawn(seed, (360, 480), 1.0, (0.8, 0.9))])
        drop.append(float(clear[..., -60:, :].mean() - clear[..., :60, :].mean()))
    assert np.mean(drop) > 0.05
    assert np.mean(np.array(drop) > 0) > 0.9


def test_a_crop_has_a_part_of_a_scenes_haze() -> None:
    spans = []
    for seed in range(40):
        haze = Haze.drawn(seed, (128, 128), 1.0, (0.8, 0.9))
        assert 0 <= haze.top < haze.bottom <= 1
        spans.append(haze.bottom - haze.top)
    assert 0.15 < min(spans) < max(spans) < 0.4
    whole = Haze.drawn(0, (480, 640), 1.0, (0.8, 0.9))
    assert (whole.top, whole.bottom) == (0.0, 1.0)


def test_haze_pulls_towards_the_airlight() -> None:
    rain = parameters("rain", 4, (64, 64))
    assert isinstance(rain, Rain)
    dry = replace(rain, layers=tuple(replace(layer, density=0.0) for layer in rain.layers))
    airlight = torch.tensor(rain.haze.airlight)[None, :, None, None]
    for level in (0.0, 1.0):
        clean = gray(64, 64, level)
        clear = transmission(clean, [rain.haze])
        expected = clean * clear + airlight * (1 - clear)
        torch.testing.assert_close(rained(clean, [1], [dry]), expected, atol=1e-6, rtol=0)


def test_streaks_only_add_light_and_are_thin_and_parallel() -> None:
    for seed in range(8):
        # Three times as large, since differences of pixels blunt the angle of what is thin.
        rain = parameters("rain", seed, (256, 256), scale=3.0)
        assert isinstance(rain, Rain)
        clear = replace(rain, screen=0.0, haze=replace(rain.haze, beta=0.0))
        light = rained(gray(256, 256, 0.2), [seed], [clear])[0, 0].double() - 0.2
        assert light.min() > -1e-6
        # The structure tensor: light changes across one direction, that of the layers' angle.
        gy, gx = light.diff(dim=0)[:, :-1], light.diff(dim=1)[:-1]
        down, across, both = (float(g.mean()) for g in (gy * gy, gx * gx, gx * gy))
        assert across > 2 * down
        normal = 0.5 * math.atan2(2 * both, across - down)
        angle = np.mean([layer.angle for layer in rain.layers])
        assert abs(-normal - angle) < 0.08


def test_snow_lightens_a_dark_scene_and_flakes_have_several_sizes() -> None:
    snow = parameters("snow", 5, (256, 256))
    assert isinstance(snow, Snow)
    radii = [layer.largest for layer in snow.layers]
    assert radii == sorted(radii)
    assert radii[-1] > 8 * radii[0]
    densities = [layer.density for layer in snow.layers]
    assert densities[0] > 10 * densities[-1]
    dark = gray(256, 256, 0.05)
    seen = degrade(dark, ["snow"], [5])
    assert (seen >= dark - 1e-6).all()
    covered = (seen - dark > 0.1).float().mean()
    assert 0.005 < covered < 0.9


def test_flakes_are_semi_transparent() -> None:
    # Seen before black and before white, a flake of opacity α differs from both.
    black, white = (degrade(gray(128, 128, level), ["snow"], [3]) for level in (0.0, 1.0))
    passed = (white - black).clamp(0, 1)
    assert passed.min() > 0
    assert ((passed > 0.1) & (passed < 0.9)).float().mean() > 0.01


def test_drops_show_the_scene_upside_down() -> None:
    # White above, black below: in a drop it is the other way round.
    clean = torch.zeros(1, 3, 400, 400)
    clean[:, :, :200] = 1
    upper = lower = 0.0
    for seed in range(6):
        drops = parameters("raindrop", seed, (400, 400))
        assert isinstance(drops, Raindrops)
        seen = degrade(clean, ["raindrop"], [seed])
        upper += float((1 - seen[:, :, 120:200]).mean())
        lower += float(seen[:, :, 200:280].mean())
    assert upper > 0.05
    assert lower > 0.05


def black_drops(radius: float, defocus: float, density: float) -> Raindrops:
    """Drops of one size that show nothing: what they leave of a white scene is 1 - M."""
    layer = DropLayer(density, radius, radius, defocus, tallest=1.0, raggedness=0.0)
    drawn = parameters("raindrop", 0, (400, 400))
    assert isinstance(drawn, Raindrops)
    none = replace(layer, density=0.0)
    return replace(drawn, opacity=1.0, gain=0.0, light=0.0, layers=(none, layer, none, none))


@pytest.mark.parametrize("radius", [3.0, 9.0])
def test_out_of_focus_a_drop_is_wider_and_fainter_and_hides_as_much(radius: float) -> None:
    masks = []
    for defocus in (0.5, 2.0, 6.0, 12.0):
        drops = black_drops(radius, defocus, density=40 / radius**2)
        masks.append(1 - spattered(gray(400, 400, 1.0), [3], [drops])[0, 0].double())
    hidden = [float(m.sum()) for m in masks]
    # A soft step's tails lie further out than they are cut inside: up to a fifth in area.
    assert max(hidden) < 1.25 * min(hidden)
    touched = [float((m > 0).double().mean()) for m in masks]
    assert touched == sorted(touched)
    # Smaller than the disc, a drop hides its share of the disc's area.
    assert float(masks[3].max()) < 3 * (radius / 12) ** 2
    assert float(masks[0].max()) > 0.99


def test_drops_leave_the_scene_between_them_as_it_is(photograph: Tensor) -> None:
    kept = []
    for seed in range(8):
        seen = degrade(photograph, ["raindrop"], [seed])
        kept.append(float((seen == photograph).all(dim=1).float().mean()))
    # Out of focus, each drop reaches further than its outline.
    assert min(kept) > 0.15
    assert max(kept) < 0.995


# ---- strength ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weather", "mean", "spread"),
    # Snow100K-L, Outdoor-Rain and RainDrop lie about there, and each has light and heavy pictures.
    [("snow", (17.5, 23.5), 3.0), ("rain", (12.5, 18.0), 2.5), ("raindrop", (20.0, 27.0), 2.0)],
)
def test_inputs_are_as_degraded_as_the_benchmarks(
    weather: str, mean: tuple[float, float], spread: float, photograph: Tensor
) -> None:
    clean = photograph[:, :, :320, 100:420]
    values = [psnr(degrade(clean, [weather], [seed]), clean) for seed in range(40)]
    assert mean[0] < np.mean(values) < mean[1]
    assert np.std(values) > spread
    assert min(values) < mean[0] < mean[1] < max(values)


def test_larger_pictures_have_larger_flakes() -> None:
    small, large = (parameters("snow", 9, size) for size in ((480, 640), (960, 1280)))
    assert isinstance(small, Snow)
    assert isinstance(large, Snow)
    assert large.scale == pytest.approx(2 * small.scale)
    assert large.layers[2].largest == pytest.approx(2 * small.layers[2].largest)
    assert large.layers[2].density == pytest.approx(small.layers[2].density / 4)
    fixed = parameters("snow", 9, (960, 1280), scale=1.0)
    assert fixed.scale == pytest.approx(small.scale)
