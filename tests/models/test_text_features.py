"""The text features in a checkpoint: the weather is named from a folder alone."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from clipweather_fast.clip import TextFeatures, WeatherClassifier
from clipweather_fast.models import ClipWeather, TransWeather, create_model
from clipweather_fast.restore import Restorer
from small_networks import photograph, small

FILE = "text_features.safetensors"
WIDTH = 24


def classifier(seed: int = 0, width: int = WIDTH, **changes: Any) -> WeatherClassifier:
    drawn = torch.randn(3, width, generator=torch.Generator().manual_seed(seed))
    text = TextFeatures(torch.nn.functional.normalize(drawn, dim=1), **changes)
    return WeatherClassifier(text, tau=20.0)


def able(seed: int = 0) -> ClipWeather:
    network = small()
    assert isinstance(network, ClipWeather)
    network.classifier = classifier(seed)
    return network


def test_a_checkpoint_alone_names_the_weather(tmp_path: Path) -> None:
    network, picture = able(), photograph(30, 40)
    expected = Restorer(network).classify(picture)
    assert set(expected) == {"snow", "rain", "raindrop"}
    assert sum(expected.values()) == pytest.approx(1)
    network.save_pretrained(tmp_path)
    assert (tmp_path / FILE).is_file()
    loaded = ClipWeather.from_pretrained(tmp_path)
    assert isinstance(loaded.classifier, WeatherClassifier)
    assert loaded.classifier.tau == 20.0
    # The tests' prior encoders are drawn anew: here it is the same one.
    loaded._frozen = network._frozen
    assert Restorer(loaded).classify(picture) == pytest.approx(expected)
    for other in (
        create_model("clipweather_base", pretrained=tmp_path),
        create_model(f"local-dir:{tmp_path}"),
    ):
        assert isinstance(other, ClipWeather)
        assert other.classifier is not None


def test_words_and_sentence_are_kept(tmp_path: Path) -> None:
    network = small()
    words, sentence = ("fog", "hail", "night"), "A photo of {}"
    network.classifier = classifier(words=words, template=sentence, encoder="clip:x")  # type: ignore[assignment]
    network.save_pretrained(tmp_path)
    text = TextFeatures.load(tmp_path / FILE)
    assert (text.words, text.template, text.encoder) == (words, sentence, "clip:x")
    network.save_pretrained(tmp_path / "again")
    loaded = ClipWeather.from_pretrained(tmp_path / "again")
    assert loaded.classifier is not None
    assert loaded.classifier.words == words


def test_parameters_and_state_dict_stay_the_same() -> None:
    plain, network = small(), able()
    assert list(network.state_dict()) == list(plain.state_dict())
    assert [name for name, _ in network.named_buffers()] == []
    assert "classifier" not in dict(network.named_modules())
    network.load_state_dict(plain.state_dict())
    plain.load_state_dict(network.state_dict())


def test_it_goes_with_copies_and_can_be_taken_away(tmp_path: Path) -> None:
    network = able()
    assert network.classifier is not None
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin.classifier.features, network.classifier.features)
    network.save_pretrained(tmp_path)
    network.classifier = None
    assert network.classifier is None
    network.save_pretrained(tmp_path)
    assert not (tmp_path / FILE).exists()
    assert ClipWeather.from_pretrained(tmp_path).classifier is None


def test_a_network_in_low_precision_names_the_weather() -> None:
    network, picture = able(), photograph(30, 40)
    expected = Restorer(network).classify(picture)
    low = Restorer(copy.deepcopy(network).to(torch.bfloat16), dtype="float32").classify(picture)
    assert low == pytest.approx(expected, abs=0.1)


def test_what_does_not_belong_is_refused(tmp_path: Path) -> None:
    network = small()
    with pytest.raises(TypeError, match="classifier must be a WeatherClassifier or None, got Lin"):
        network.classifier = torch.nn.Linear(1, 1)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="must have length prior_width = 24, got 8"):
        network.classifier = classifier(width=8)  # type: ignore[assignment]
    with pytest.raises(ValueError, match="'none', so there is no prior to classify"):
        small(prior_encoder="none").classifier = classifier()  # type: ignore[assignment]
    with pytest.raises(RuntimeError, match="there are no text features to save"):
        WeatherClassifier(dim=4).save(tmp_path / "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "spoil",
    [
        lambda file: file.write_bytes(b"not features"),
        lambda file: classifier(width=8).save(file),
        lambda file: TextFeatures(torch.eye(3, WIDTH)).save(file, tau="-1"),
        lambda file: TextFeatures(torch.eye(3, WIDTH)).save(file, tau="high"),
    ],
    ids=["damaged", "length", "tau", "word"],
)
def test_a_wrong_file_is_named(spoil: Any, tmp_path: Path) -> None:
    able().save_pretrained(tmp_path)
    spoil(tmp_path / FILE)
    with pytest.raises(ValueError, match=rf"from_pretrained: .*{FILE} does not fit: "):
        ClipWeather.from_pretrained(tmp_path)


def test_transweather_minds_no_text(tmp_path: Path) -> None:
    small("TransWeather").save_pretrained(tmp_path)
    classifier().save(tmp_path / FILE)
    network = TransWeather.from_pretrained(tmp_path)
    assert not hasattr(network, "classifier")
