"""The square that the encoders see is the one Pillow would make."""

import numpy as np
import pytest
import torch
from PIL import Image

from clipweather_fast.clip.preprocessing import CLIP_MEAN, CLIP_STD, normalised, squared


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
