"""Every kind of picture comes back as it went in, at any size, in whatever memory there is."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clipweather_fast.ops import _native
from clipweather_fast.restore import (
    Picture,
    PrecisionWarning,
    Report,
    Restorer,
    engine,
    memory,
    read_picture,
)
from clipweather_fast.restore.engine import fast_at_bfloat16
from known_networks import Global, Greedy, Local, Overflowing, Same, tiny_network

RGB = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


# ---- kinds -------------------------------------------------------------------------------------

ARRAYS = {
    "uint8": RGB,
    "uint16": RGB.astype(np.uint16) * 257,
    "float16": (RGB / 255).astype(np.float16),
    "float32": (RGB / 255).astype(np.float32),
    "float64": RGB / 255,
    "gray": RGB[..., 0],
    "gray uint16": RGB[..., 0].astype(np.uint16) * 257,
    "sliced": RGB[::2, ::3],
    "mirrored": RGB[:, ::-1],
    "BGR": RGB[..., ::-1],
    "big-endian": (RGB.astype(np.uint16) * 257).astype(">u2"),
    "transposed": RGB.transpose(1, 0, 2),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays_come_back_as_they_went_in(name: str) -> None:
    given = ARRAYS[name]
    before = given.copy()
    given.flags.writeable = False
    back = Restorer(Same(), device="cpu")(given)
    assert back.dtype == given.dtype.newbyteorder("=")
    assert back is not given
    rounding = np.finfo(np.float32).eps if given.dtype == np.float64 else 0
    np.testing.assert_allclose(back, before, rtol=rounding, atol=0)
    np.testing.assert_array_equal(given, before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.uint8])
@pytest.mark.parametrize("shape", [(3, 17, 33), (2, 3, 17, 33), (1, 3, 1, 1), (0, 3, 5, 5)])
def test_tensors_come_back_as_they_went_in(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    given = torch.rand(shape).to(dtype) if dtype.is_floating_point else torch.randint(256, shape)
    given = given.to(dtype)
    back = Restorer(Same(), device="cpu")(given)
    assert (back.shape, back.dtype, back.device) == (given.shape, given.dtype, given.device)
    torch.testing.assert_close(back, given)
    assert not back.is_inference()
    assert not back.requires_grad


def test_a_tensor_with_a_gradient_and_channels_last_comes_back_without_one() -> None:
    given = torch.rand(1, 3, 8, 9).to(memory_format=torch.channels_last).requires_grad_()
    back = Restorer(Same())(given)
    assert back.is_contiguous(memory_format=torch.channels_last)
    assert not back.requires_grad


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_pillows_images_come_back_in_their_mode(mode: str) -> None:
    given = Image.fromarray(RGB)
    if mode == "I;16":
        given = Image.fromarray(RGB[..., 0].astype(np.uint16) * 257)
    else:
        given = given.quantize(50) if mode == "P" else given.convert(mode)
    given.info.update(dpi=(300.0, 300.0), icc_profile=b"profile")
    back = Restorer(Same(), dtype="float32")(given)
    assert (back.mode, back.size) == (mode, given.size)
    assert back.info["icc_profile"] == b"profile"
    colours = [image.convert("RGB") if mode == "P" else image for image in (back, given)]
    # Inks of a pixel without light cannot be told apart.
    np.testing.assert_allclose(*map(np.asarray, colours), atol=1 if mode == "CMYK" else 0)


def test_a_path_gives_a_picture_that_can_be_saved(tmp_path: Path) -> None:
    Image.fromarray(RGB).save(tmp_path / "in.png")
    for path in (tmp_path / "in.png", str(tmp_path / "in.png")):
        back = Restorer(Same())(path)
        assert isinstance(back, Picture)
        back.save(tmp_path / "out.png")
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "out.png")), RGB)


def test_sixteen_bits_of_a_file_come_back(tmp_path: Path) -> None:
    samples = np.random.default_rng(0).integers(0, 65536, (40, 70, 4), dtype=np.uint16)
    Picture(samples[..., :3], "RGB", samples[..., 3]).save(tmp_path / "deep.png")
    for tile in (None, 32):
        restorer = Restorer(Same(), tile=tile, tile_overlap=8)
        restorer(tmp_path / "deep.png").save(tmp_path / "again.tif")
        back = read_picture(tmp_path / "again.tif")
        np.testing.assert_array_equal(np.dstack([back.pixels, back.alpha]), samples)


def test_transparency_is_passed_on_and_colours_are_restored() -> None:
    alpha = np.arange(37 * 53, dtype=np.uint8).reshape(37, 53)
    picture = Picture(RGB, "RGB", alpha=alpha)
    back = Restorer(Local(1), dtype="float32").restore_picture(picture)
    np.testing.assert_array_equal(back.alpha, alpha)
    assert (back.pixels != RGB).any()


def test_a_list_gives_a_list_and_restores_those_of_a_size_together() -> None:
    network = Same()
    given = [RGB, RGB[:20], torch.rand(2, 3, 37, 53), RGB + 1, Image.fromarray(RGB)]
    back = Restorer(network, dtype="float32")(given)
    assert [type(one) for one in back] == [type(one) for one in given]
    np.testing.assert_array_equal(back[3], RGB + 1)
    np.testing.assert_array_equal(np.asarray(back[4]), RGB)
    assert sorted(network.shapes) == [(1, 3, 20, 53), (2, 3, 37, 53), (3, 3, 37, 53)]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (np.zeros((4, 4, 4), np.uint8), "transparency is not restored"),
        (np.zeros((0, 4, 3), np.uint8), "H, W ≥ 1"),
        (np.zeros((4, 4, 3), np.int64), "uint8, uint16 or floating point"),
        (np.full((4, 4, 3), 255.0), "divide by 255"),
        (np.full((4, 4, 3), np.nan), "must be finite"),
        (torch.zeros(4, 4, 3), r"\(3, H, W\)"),
        (torch.full((3, 4, 4), 255.0), "divide by 255"),
        (torch.zeros(3, 4, 4, dtype=torch.int64), "floating point in"),
        (Image.new("F", (4, 4)), "32-bit samples"),
        (7, "got int"),
    ],
)
def test_what_is_no_picture_is_said_so(given: Any, words: str) -> None:
    with pytest.raises((TypeError, ValueError), match=words):
        Restorer(Same())(given)


# ---- sizes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (17, 33), (63, 65), (130, 5)])
def test_a_real_network_takes_any_size(size: tuple[int, int]) -> None:
    restorer = Restorer(tiny_network(), dtype="float32")
    back = restorer(np.random.default_rng(1).random((*size, 3), dtype=np.float32))
    assert back.shape == (*size, 3)
    assert back.min() >= 0
    assert back.max() <= 1
    tiled = Restorer(tiny_network(), dtype="float32", tile=128)(back)
    assert tiled.shape == back.shape


def test_eight_thousand_pixels_across() -> None:
    picture = np.zeros((4320, 7680, 3), np.uint8)
    picture[::7, ::5] = 200
    network = Same()
    back = Restorer(network, tile=2048)(picture)
    assert np.array_equal(back, picture)
    assert max(h * w for _, _, h, w in network.shapes) <= 2048 * 2048


# ---- how it computes ---------------------------------------------------------------------------


def test_the_network_gets_channels_last_in_inference_mode_and_eval_mode() -> None:
    network = Same().train()
    Restorer(network)(RGB)
    assert network.inference
    assert not network.training
    assert network.last is not None
    assert network.last.is_contiguous(memory_format=torch.channels_last)
    assert network.last.dtype == torch.float32


def test_the_result_is_clamped_and_rounded_to_the_nearest_level() -> None:
    class Shifted(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image + 100.6 / 255

    back = Restorer(Shifted(), dtype="float32")(np.array([[[0, 100, 200]]], np.uint8))
    assert back.tolist() == [[[101, 201, 255]]]


def test_the_prior_is_computed_once_of_the_whole_picture() -> None:
    network = Global()
    picture = torch.rand(3, 150, 210)
    back = Restorer(network, tile=64)(picture)
    assert network.prior_shapes == [(1, 3, 150, 210)]
    assert len(network.priors) > 6
    assert all(torch.equal(prior, network.priors[0]) for prior in network.priors)
    torch.testing.assert_close(back, picture.mean((1, 2))[:, None, None].expand_as(back))


def test_a_large_picture_is_averaged_for_its_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PRIOR_PIXELS", 1000)
    for given in (RGB, (RGB / 255).astype(np.float32), np.full((1, 5000, 3), 51, np.uint8)):
        network = Global()
        prior = Restorer(network).encode_prior(given)
        assert prior is not None
        height, width = network.prior_shapes[0][2:]
        assert height * width <= 1000
        mean = given.mean((0, 1)) / (255 if given.dtype == np.uint8 else 1)
        # Windows at the border are smaller and count as much.
        np.testing.assert_allclose(prior[0].numpy(), mean, atol=0.01)


def test_frames_take_a_prior_that_was_computed_before() -> None:
    network = Global()
    restorer = Restorer(network, dtype="float32")
    prior = restorer.encode_prior(np.full((8, 8, 3), 51, np.uint8))
    assert (restorer.restore_frame(RGB, prior) == 51).all()
    assert len(network.prior_shapes) == 1
    assert Restorer(Same()).encode_prior(RGB) is None


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.uint8, "low"), (torch.uint16, "float32"), (torch.float32, "float32")],
)
def test_low_precision_is_for_eight_bits_on_devices_that_are_fast_at_it(
    given: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture = {torch.uint8: RGB, torch.uint16: RGB.astype(np.uint16)}.get(given, RGB / 255)
    for fast in (True, False):
        monkeypatch.setattr(engine, "fast_at_bfloat16", lambda device, fast=fast: fast)
        restorer = Restorer(Same(), device="cpu")
        restorer(picture)
        low = "bfloat16" if fast else "float32"
        assert restorer.report.dtype == (low if expected == "low" else expected)
    named = Restorer(Same(), dtype="bfloat16")
    named(picture)
    assert named.report.dtype == "bfloat16"


def test_which_processors_are_fast_at_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu = torch.device("cpu")
    for known in (True, False):
        monkeypatch.setattr(_native, "bfloat16_pays", lambda known=known: known)
        assert fast_at_bfloat16(cpu) is known
    for capability, fast in (((7, 5), False), ((8, 0), True), ((9, 0), True)):
        answer = lambda device, capability=capability: capability  # noqa: E731
        monkeypatch.setattr(torch.cuda, "get_device_capability", answer)
        assert fast_at_bfloat16(torch.device("cuda")) is fast


@pytest.mark.parametrize("tile", ["auto", 16])
def test_a_result_that_is_not_finite_is_computed_again_in_float32(tile: Any) -> None:
    restorer = Restorer(Overflowing(), dtype="float16", tile=tile, tile_overlap=0)
    with pytest.warns(PrecisionWarning, match="float16"):
        back = restorer(RGB[:16, :32])
    np.testing.assert_allclose(back, RGB[:16, :32], atol=1)
    assert restorer.report.retries == (1 if tile == "auto" else 2)


def test_a_network_that_never_gives_numbers_is_named() -> None:
    with pytest.raises(ArithmeticError, match="even in float32"):
        Restorer(Overflowing(broken=True), dtype="float32")(RGB)


def test_a_prior_that_is_never_a_number_is_named() -> None:
    class Broken(Global):
        def encode_prior(self, image: torch.Tensor) -> torch.Tensor:
            return super().encode_prior(image) * torch.nan

    for precision in ("float32", "bfloat16"):
        with pytest.raises(ArithmeticError, match="weather prior is NaN"):
            Restorer(Broken(), dtype=precision).encode_prior(RGB)


def test_a_network_that_changes_the_size_is_named() -> None:
    with pytest.raises(ValueError, match=r"must give \(1, 3, 37, 53\)"):
        Restorer(torch.nn.MaxPool2d(2))(RGB)


def test_compiled_networks_restore_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tracing is tested; PyTorch's own C++ back end, which takes long to compile, is not.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    expected = Restorer(Local(2))(RGB)
    np.testing.assert_array_equal(Restorer(Local(2), compile=True)(RGB), expected)


# ---- memory ------------------------------------------------------------------------------------

FAILURES = [torch.OutOfMemoryError, RuntimeError, MemoryError]


@pytest.mark.parametrize("error", FAILURES)
@pytest.mark.parametrize("tile", ["auto", 128])
def test_out_of_memory_halves_the_tile_and_goes_on(error: type[Exception], tile: Any) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (200, 300, 3), dtype=np.uint8)
    network = Greedy(80 * 80, error)
    restorer = Restorer(network, dtype="float32", tile=tile, tile_overlap=16)
    np.testing.assert_array_equal(restorer(picture), picture)
    assert restorer.report.halvings == (2 if tile == "auto" else 1)
    assert restorer.report.tile in (64, 75)
    # The next picture begins where this one ended.
    np.testing.assert_array_equal(restorer(picture), picture)
    assert restorer.report.halvings == 0


def test_out_of_memory_halves_a_batch_first() -> None:
    network = Greedy(3 * 37 * 53)
    pictures = [RGB + np.uint8(i) for i in range(7)]
    restorer = Restorer(network, dtype="float32")
    back = restorer(pictures)
    np.testing.assert_array_equal(np.stack(back), np.stack(pictures))
    assert restorer.report.tile is None
    assert [shape[0] for shape in network.shapes] == [7, 3, 3, 1]


def test_other_errors_are_not_taken_for_lack_of_memory() -> None:
    with pytest.raises(ZeroDivisionError):
        Restorer(Greedy(0, ZeroDivisionError))(RGB)


def test_too_little_memory_for_any_tile_is_said() -> None:
    with pytest.raises(MemoryError, match="not even tiles of 64 pixels"):
        Restorer(Greedy(10), tile_overlap=32)(np.zeros((300, 300, 3), np.uint8))
    with pytest.raises(MemoryError, match="tile='auto' cuts the picture"):
        Restorer(Greedy(10), tile=None)(RGB)


def test_tiles_are_chosen_by_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "UNASKED_PIXELS", 0)
    picture = np.zeros((300, 400, 3), np.uint8)
    restorer = Restorer(tiny_network(prior_encoder="none"), dtype="float32")
    restorer(picture)
    assert restorer.report.tile is None
    need = restorer._engine._estimate(torch.float32)
    monkeypatch.setattr(memory, "available_bytes", lambda device: need.bytes(200 * 200))
    restorer(picture)
    assert restorer.report == Report("cpu", "float32", tile=192, passes=6)


# ---- construction ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tile": 0}, "tile must be"),
        ({"tile": "large"}, "tile must be"),
        ({"tile_overlap": -1}, "tile_overlap must not be negative"),
        ({"tile": 32, "tile_overlap": 32}, "tile_overlap must be less"),
        ({"dtype": "float8"}, "dtype must be"),
        ({"dtype": torch.float64}, "dtype must be"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Restorer(Same(), **arguments)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match="sees no GPU"):
        Restorer(Same(), device="cuda")
    assert Restorer(Same()).device.type == "cpu"


def test_names_and_folders(tmp_path: Path) -> None:
    network = tiny_network(prior_encoder="none")
    network.save_pretrained(tmp_path / "folder")
    expected = Restorer(network, dtype="float32")(RGB)
    for source in (
        tmp_path / "folder",
        str(tmp_path / "folder"),
        f"local-dir:{tmp_path / 'folder'}",
    ):
        np.testing.assert_array_equal(Restorer(source, dtype="float32")(RGB), expected)
    with pytest.raises(ValueError, match="is a file and brings no configuration"):
        Restorer(tmp_path / "folder" / "model.safetensors")
    with pytest.raises(ValueError, match="no weights come with 'clipweather_small', only"):
        Restorer("clipweather_small")
    with pytest.raises(ValueError, match="there is no model"):
        Restorer("clipweather_huge")


# ---- the weather -------------------------------------------------------------------------------


def test_the_weather_is_named_with_the_text_features_given() -> None:
    from clipweather_fast.clip import WeatherClassifier
    from clipweather_fast.clip.text import TextFeatures

    network = Global()
    restorer = Restorer(network)
    wanted = r"without text features .* load a checkpoint .* set restorer\.classifier to clip"
    with pytest.raises(RuntimeError, match=wanted) as caught:
        restorer.classify(RGB)
    assert "--" not in str(caught.value)  # an option of the command, which nobody called
    restorer.classifier = WeatherClassifier(TextFeatures(torch.eye(3)))
    green = np.zeros((5, 5, 3), np.uint8)
    green[..., 1] = 200
    named = restorer.classify(green)
    assert next(iter(named)) == "rain"
    assert sum(named.values()) == pytest.approx(1)
    with pytest.raises(ValueError, match="one picture"):
        restorer.classify(torch.rand(2, 3, 4, 4))
    plain = Restorer(Same())
    plain.classifier = restorer.classifier
    with pytest.raises(RuntimeError, match="no weather prior"):
        plain.classify(RGB)
