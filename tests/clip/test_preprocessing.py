"""The square that the encoders see is the one Pillow would make."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clipweather_fast import use_backend
from clipweather_fast.clip._encoder_input import native_encoder_input
from clipweather_fast.clip.preprocessing import (
    CLIP_MEAN,
    CLIP_STD,
    encoder_input,
    normalised,
    squared,
)
from clipweather_fast.ops import _native


@pytest.mark.parametrize(("height", "width"), [(300, 451), (97, 224), (40, 31), (1, 1), (224, 224)])
def test_square_is_pillow_s(height: int, width: int) -> None:
    # Mild contrasts: Pillow also clips what overshoots between the two directions.
    picture = np.random.randint(60, 196, (height, width, 3), dtype=np.uint8)
    resized = Image.fromarray(picture).resize((224, 224), Image.Resampling.BICUBIC)
    expected = torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 255
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    found = squared(image, 224)
    # Pillow rounds to eight bits between the two directions and at the end.
    torch.testing.assert_close(found, expected, rtol=0, atol=1.6 / 255)


def test_what_the_cubic_overshoots_is_clipped() -> None:
    found = squared((torch.rand(1, 3, 30, 30) > 0.5).float(), 224)
    assert found.min() == 0
    assert found.max() == 1


def test_normalisation_is_clip_s() -> None:
    image = torch.rand(2, 3, 5, 4)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    torch.testing.assert_close(normalised(image, CLIP_MEAN, CLIP_STD), (image - mean) / std)


def test_statistics_are_open_clip_s() -> None:
    import open_clip

    assert open_clip.OPENAI_DATASET_MEAN == CLIP_MEAN
    assert open_clip.OPENAI_DATASET_STD == CLIP_STD


def test_half_precision_pictures_are_resized_in_float32() -> None:
    image = torch.rand(1, 3, 50, 60)
    found = squared(image.bfloat16(), 32)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, squared(image.bfloat16().float(), 32))


# ---- the native pass -----------------------------------------------------------------------------

needs_native = pytest.mark.skipif(
    _native.why_not_loaded() is not None, reason=str(_native.why_not_loaded())
)


def exact(image: Tensor, size: int) -> Tensor:
    """PyTorch's steps in float64, in which the pixels' places are not rounded."""
    square = F.interpolate(image.double(), (size, size), mode="bicubic", antialias=True)
    return normalised(square.clamp(0, 1), CLIP_MEAN, CLIP_STD)


@needs_native
@pytest.mark.parametrize("size", [32, 224])
@pytest.mark.parametrize(
    ("height", "width"),
    [(224, 224), (256, 256), (480, 720), (97, 1030), (1, 1), (2, 3), (5, 700), (223, 225)],
)
def test_the_native_pass_gives_what_pytorchs_steps_do(height: int, width: int, size: int) -> None:
    torch.manual_seed(0)
    # Values beyond the range, and edges: the cubic overshoots, and clipping must follow.
    image = (torch.rand(2, 3, height, width) * 1.4 - 0.2).round(decimals=1)
    expected = exact(image, size)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = native_encoder_input(
            image.contiguous(memory_format=layout), size, CLIP_MEAN, CLIP_STD
        )
        assert found is not None
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=4e-6)
    strided = torch.rand(2, 3, height * 2, width)[:, :, ::2]
    found = encoder_input(strided, size, CLIP_MEAN, CLIP_STD)
    torch.testing.assert_close(found.double(), exact(strided, size), rtol=1e-5, atol=4e-6)


@needs_native
@pytest.mark.parametrize("size", [5, 32])
def test_planes_pixels_and_what_lies_otherwise_give_the_same_bits(size: int) -> None:
    image = torch.rand(2, 3, 47, 61)
    gray = image[:, :1].expand(-1, 3, -1, -1)
    for given in (image, gray):
        expected = encoder_input(
            given.contiguous(memory_format=torch.channels_last), size, CLIP_MEAN, CLIP_STD
        )
        others = [given, given.mT.contiguous().mT, given.repeat_interleave(2, 2)[:, :, ::2]]
        for other in (*others, given.repeat_interleave(2, 3)[:, :, :, ::2]):
            assert torch.equal(other, given)
            assert torch.equal(encoder_input(other, size, CLIP_MEAN, CLIP_STD), expected)


@needs_native
def test_the_native_pass_keeps_what_is_not_a_number_where_it_is() -> None:
    image = torch.rand(1, 3, 64, 64)
    image[0, 1, 30, 20] = torch.nan
    found = encoder_input(image, 32, CLIP_MEAN, CLIP_STD).isnan()
    assert torch.equal(found, normalised(squared(image, 32), CLIP_MEAN, CLIP_STD).isnan())


@needs_native
def test_the_native_pass_repeats_on_any_number_of_threads() -> None:
    image, threads = torch.rand(2, 3, 130, 90), torch.get_num_threads()
    try:
        found = []
        for number in (1, 2):
            torch.set_num_threads(number)
            found.append(encoder_input(image, 64, CLIP_MEAN, CLIP_STD))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(*found)


@needs_native
def test_the_native_pass_leaves_gradients_and_named_backends_to_pytorch() -> None:
    image = torch.rand(1, 3, 40, 40, requires_grad=True)
    arguments = (32, CLIP_MEAN, CLIP_STD)
    assert native_encoder_input(image, *arguments) is None
    encoder_input(image, *arguments).sum().backward()
    assert image.grad is not None
    assert native_encoder_input(image.detach().double(), *arguments) is None
    assert native_encoder_input(image.detach()[:0], *arguments) is None
    with use_backend("reference"):
        assert native_encoder_input(image.detach(), *arguments) is None
    assert native_encoder_input(image.detach(), *arguments) is not None
