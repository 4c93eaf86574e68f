"""Text features: their values, their file, and the classifier on them."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import tiny_clip
from clipweather_fast.clip import (
    TextFeatures,
    WeatherClassifier,
    build_text_encoder,
    text_features,
)


def unit(count: int = 3, dim: int = 8) -> Tensor:
    return F.normalize(torch.randn(count, dim), dim=1)


# ---- the text tower ------------------------------------------------------------------------------


def test_computes_the_text_transformer() -> None:
    state = tiny_clip.clip_weights()
    encoder = build_text_encoder(tiny_clip.KIND, state)
    sentences = ["An image with snow", "rain", "drops, of water; on a pane"]
    tokens = encoder.tokenize(sentences)
    expected = F.normalize(tiny_clip.text_transformer(tokens, state, heads=2), dim=1)
    torch.testing.assert_close(encoder(sentences), expected, rtol=1e-4, atol=1e-5)


def test_tokens_are_clip_s() -> None:
    tokens = build_text_encoder(tiny_clip.KIND, "random").tokenize(["An image with snow"])
    # start, an, image, with, snow, end, as OpenAI's tokenizer numbers them
    assert tokens[0, :7].tolist() == [49406, 550, 2867, 593, 2583, 49407, 0]


def test_full_size_has_the_specification_s_shapes() -> None:
    encoder = build_text_encoder("clip:ViT-B-32-quickgelu", "random")
    assert encoder.dim == 512
    # 151,277,313 of the whole model, less the image tower's
    assert sum(p.numel() for p in encoder.parameters()) == 151_277_313 - 87_849_216
    text = text_features(encoder)
    assert text.features.shape == (3, 512)
    assert text.words == ("snow", "rain", "raindrop")
    assert text.template == "An image with {}"


def test_encoder_stays_frozen() -> None:
    encoder = build_text_encoder(tiny_clip.KIND, "random").train()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert not encoder.requires_grad_(True)(["fog"]).requires_grad


@pytest.mark.parametrize("kind", ["imagenet", "clip", "clip:", "convolutional"])
def test_kinds_without_text_are_named(kind: str) -> None:
    with pytest.raises(ValueError, match="kind must be clip:MODEL"):
        build_text_encoder(kind, "random")


# ---- the features and their file -----------------------------------------------------------------


def test_features_follow_words_and_template() -> None:
    heard: list[str] = []

    def encoder(sentences: list[str]) -> Tensor:
        heard.extend(sentences)
        return torch.eye(2, 4) * 5

    text = text_features(encoder, ("fog", "dust"), "A {} day")
    assert heard == ["A fog day", "A dust day"]
    assert torch.equal(text.features, torch.eye(2, 4))
    assert (text.words, text.template) == (("fog", "dust"), "A {} day")


def test_file_gives_back_what_was_saved(tmp_path: Path) -> None:
    text = TextFeatures(unit(), encoder="clip:some-model")
    path = tmp_path / "text.safetensors"
    path.write_text("an older file")
    text.save(path)
    loaded = TextFeatures.load(path)
    torch.testing.assert_close(loaded.features, text.features)
    assert (loaded.words, loaded.template) == (text.words, text.template)
    assert loaded.encoder == "clip:some-model"
    assert [p.name for p in tmp_path.iterdir()] == ["text.safetensors"]


def test_a_save_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "text.safetensors"
    path.write_text("an older file")

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="no space left"):
        TextFeatures(unit()).save(path)
    assert path.read_text() == "an older file"
    assert [p.name for p in tmp_path.iterdir()] == ["text.safetensors"]


FORMAT = "clipweather_fast.text_features"
GOOD = {"format": FORMAT, "words": '["snow", "rain"]', "template": "An image with {}"}


@pytest.mark.parametrize(
    ("about", "features", "words"),
    [
        (None, torch.eye(2, 4), "its format is None"),
        (GOOD | {"format": "pt"}, torch.eye(2, 4), "its format is 'pt'"),
        (GOOD | {"words": "snow"}, torch.eye(2, 4), "Expecting value"),
        (GOOD | {"words": '"ab"'}, torch.eye(2, 4), "not a list"),
        (GOOD | {"words": "[]"}, torch.zeros(0, 4), "must be different, non-empty words"),
        (GOOD | {"words": '["a", "a"]'}, torch.eye(2, 4), "must be different, non-empty words"),
        (GOOD | {"words": '["a", 1]'}, torch.eye(2, 4), "must be different, non-empty words"),
        (GOOD | {"template": "An image"}, torch.eye(2, 4), "must contain {} once"),
        ({"format": FORMAT}, torch.eye(2, 4), "'words'"),
        (GOOD, torch.eye(3, 4), r"K = 2 words, got \(3, 4\)"),
        (GOOD, torch.eye(2, 4).long(), "floating-point tensor"),
        (GOOD, torch.eye(2, 4) * 2, r"of length one, got lengths \[2.0, 2.0\]"),
        (GOOD, torch.full((2, 4), math.nan), "must be finite"),
        (GOOD, None, "features"),
    ],
)
def test_files_of_something_else_are_refused(
    about: dict[str, str] | None, features: Tensor | None, words: str, tmp_path: Path
) -> None:
    path = tmp_path / "text.safetensors"
    save_file({"other" if features is None else "features": torch.eye(2)}, path, about)
    if features is not None:
        save_file({"features": features}, path, about)
    with pytest.raises(ValueError, match=f"is not a file of text features: .*{words}"):
        TextFeatures.load(path)


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "text.safetensors"
    with pytest.raises(FileNotFoundError, match="there is no file of text features"):
        TextFeatures.load(path)
    for content in (b"", b"hello", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is not a file of text features"):
            TextFeatures.load(path)


# ---- the classifier ------------------------------------------------------------------------------


def test_computes_its_equation() -> None:
    text = TextFeatures(unit(3, 8))
    prior = torch.randn(5, 8, dtype=torch.float64)
    classifier = WeatherClassifier(text, tau=100.0)
    expected = torch.empty(5, 3, dtype=torch.float64)
    for n, k in itertools.product(range(5), range(3)):
        t = text.features[k].double()
        expected[n, k] = 100 * (prior[n] @ t) / (prior[n].norm() * t.norm())
    torch.testing.assert_close(classifier.logits(prior), expected.float(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(classifier(prior), expected.softmax(1).float(), rtol=1e-3, atol=1e-4)


def test_gradient_reaches_the_prior_and_not_the_text() -> None:
    classifier = WeatherClassifier(TextFeatures(unit()), tau=1.0)
    prior = torch.randn(2, 8, requires_grad=True)
    F.cross_entropy(classifier.logits(prior), torch.tensor([0, 2])).backward()
    assert prior.grad is not None
    assert prior.grad.abs().max() > 0
    assert not classifier.features.requires_grad
    assert list(classifier.parameters()) == []


def test_autocast_changes_nothing() -> None:
    classifier, prior = WeatherClassifier(TextFeatures(unit())), torch.randn(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = classifier(prior)
    assert torch.equal(found, classifier(prior))


def test_names_come_with_their_probabilities_the_likeliest_first() -> None:
    text = TextFeatures(torch.eye(3, 8))
    prior = torch.tensor([[0.0, 3, 0, 0, 0, 0, 0, 0], [1.0, 0, 0.999, 0, 0, 0, 0, 0]])
    first, second = WeatherClassifier(text).named(prior)
    assert list(first) == ["rain", "snow", "raindrop"]
    assert first["rain"] == pytest.approx(1.0)
    assert list(second) == ["snow", "raindrop", "rain"]
    assert sum(second.values()) == pytest.approx(1.0)


def test_state_dict_carries_the_features() -> None:
    trained = WeatherClassifier(TextFeatures(unit()))
    empty = WeatherClassifier(dim=8)
    assert trained.ready
    assert not empty.ready
    prior = torch.randn(2, 8)
    assert empty(prior).isnan().all()
    with pytest.raises(RuntimeError, match="there are no text features"):
        empty.named(prior)
    empty.load_state_dict(trained.state_dict())
    assert torch.equal(empty(prior), trained(prior))
    late = WeatherClassifier(dim=8)
    late.set_text(TextFeatures(trained.features))
    torch.testing.assert_close(late(prior), trained(prior))


def test_a_prior_that_is_not_finite_is_not_named() -> None:
    classifier = WeatherClassifier(TextFeatures(unit()))
    with pytest.raises(RuntimeError, match="the prior is not finite"):
        classifier.named(torch.full((1, 8), math.nan))


def test_wrong_arguments_are_named() -> None:
    text = TextFeatures(unit())
    with pytest.raises(ValueError, match=r"with dim = 8, got \(2, 9\)"):
        WeatherClassifier(text)(torch.randn(2, 9))
    with pytest.raises(ValueError, match="must have the words"):
        WeatherClassifier(words=("fog",), dim=8).set_text(text)
    for tau in (0.0, -1.0, math.nan, math.inf, True):
        with pytest.raises(ValueError, match="tau must be a positive number"):
            WeatherClassifier(text, tau=tau)
    for dim in (0, 2.5, True):
        with pytest.raises(ValueError, match="dim must be a positive integer"):
            WeatherClassifier(dim=dim)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be different, non-empty words"):
        WeatherClassifier(words=("rain", "rain"))
    with pytest.raises(ValueError, match=r"must contain \{\} once"):
        text_features(lambda sentences: torch.eye(len(sentences)), template="{} {}")
