"""The distillation teacher: RN50x4's trunk at any size."""

import pytest
import torch

import tiny_clip
from clipweather_fast.clip import Teacher
from clipweather_fast.clip.preprocessing import CLIP_MEAN, CLIP_STD, normalised

TINY = "tiny-resnet-quickgelu"


def test_size_and_shapes_are_the_specification_s() -> None:
    with torch.device("meta"):  # shapes alone: 62 GMACs are not computed
        teacher = Teacher("random")
        square, odd = torch.empty(2, 3, 256, 256), torch.empty(1, 3, 250, 333)
    assert sum(p.numel() for p in teacher.parameters()) == 65_619_640
    assert not any("attnpool" in name for name in teacher.state_dict())
    assert teacher.channels == (80, 640, 1280, 2560)
    assert [tuple(m.shape[1:]) for m in teacher(square)] == [
        (80, 64, 64),
        (640, 32, 32),
        (1280, 16, 16),
        (2560, 8, 8),
    ]
    assert [tuple(m.shape[2:]) for m in teacher(odd)] == [(62, 83), (31, 41), (15, 20), (7, 10)]


def test_full_size_runs() -> None:
    maps = Teacher("random")(torch.rand(1, 3, 32, 64))
    assert [tuple(m.shape) for m in maps] == [
        (1, 80, 8, 16),
        (1, 640, 4, 8),
        (1, 1280, 2, 4),
        (1, 2560, 1, 2),
    ]
    for features in maps:
        assert features.isfinite().all()
        assert features.std() > 0


def test_computes_the_residual_network() -> None:
    state = tiny_clip.clip_weights(TINY)
    teacher = Teacher(state, TINY)
    image = torch.rand(2, 3, 70, 45)
    pixels = normalised(image, CLIP_MEAN, CLIP_STD)
    trunk = tiny_clip.part(state, "visual.")
    stem, _, *rest = tiny_clip.resnet_trunk(pixels, trunk, [2, 1, 1, 1])
    torch.testing.assert_close(teacher(image), [stem, *rest], rtol=1e-4, atol=1e-5)


def test_stays_frozen() -> None:
    teacher = Teacher("random", TINY).train()
    assert not any(module.training for module in teacher.modules())
    teacher.requires_grad_(True)  # a careless caller
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    maps = teacher(torch.rand(2, 3, 40, 40, requires_grad=True))
    assert not any(m.requires_grad for m in maps)
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_computes_in_float32_under_autocast() -> None:
    teacher = Teacher("random", TINY)
    image = torch.rand(1, 3, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        maps = teacher(image)
    for found, expected in zip(maps, teacher(image), strict=True):
        assert torch.equal(found, expected)


def test_no_picture_is_no_trouble() -> None:
    assert [m.shape[0] for m in Teacher("random", TINY)(torch.rand(0, 3, 64, 64))] == [0, 0, 0, 0]


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="must be one of CLIP's ResNets"):
        Teacher("random", tiny_clip.NAME)
    teacher = Teacher("random", TINY)
    with pytest.raises(ValueError, match=r"at least 32 × 32, got \(1, 3, 31, 64\); pad it"):
        teacher(torch.rand(1, 3, 31, 64))
    with pytest.raises(TypeError, match="divide by 255"):
        teacher(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_a_pair_is_one_batch_without_gradient() -> None:
    teacher = Teacher("random", TINY)
    weather, clean = torch.rand(2, 3, 40, 64, requires_grad=True), torch.rand(2, 3, 40, 64)
    batches: list[int] = []
    teacher.get_submodule("trunk.conv1").register_forward_hook(
        lambda module, inputs, output: batches.append(inputs[0].shape[0])
    )
    maps_weather, maps_clean = teacher.pair(weather, clean)
    assert batches == [4]
    for found, image in ((maps_weather, weather), (maps_clean, clean)):
        assert not any(m.requires_grad for m in found)
        for a, b in zip(found, teacher(image), strict=True):
            torch.testing.assert_close(a, b)
    for a, b in zip(maps_weather, maps_clean, strict=True):
        assert a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()
    with pytest.raises(ValueError, match=r"one shape, got \(2, 3, 40, 64\) and \(1, 3, 40, 64\)"):
        teacher.pair(weather, clean[:1])
