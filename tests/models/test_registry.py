"""create_model, list_models, register_model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from clipweather_fast.models import (
    ClipWeather,
    ClipWeatherConfig,
    TransWeather,
    create_model,
    list_models,
    register_model,
    registry,
)
from small_networks import SMALL, SMALL_CLIP, FakePriorEncoder, small

KNOWN = ["clipweather_base", "clipweather_small", "clipweather_tiny", "transweather"]


def test_names_and_filters() -> None:
    assert list_models() == KNOWN
    assert list_models("small") == ["clipweather_small"]
    assert list_models("clip*") == KNOWN[:3]
    assert list_models("nothing") == []


def test_names_make_networks() -> None:
    network = create_model("clipweather_tiny", drop_path_rate=0.2, prior_encoder="none")
    assert isinstance(network, ClipWeather)
    assert network.config.drop_path_rate == 0.2
    assert network.training
    assert isinstance(create_model("transweather", **SMALL), TransWeather)


def test_wrong_names_and_fields_are_named() -> None:
    with pytest.raises(ValueError, match=r"no model 'clipweather_bas'; did you mean 'clipweather_"):
        create_model("clipweather_bas")
    with pytest.raises(ValueError, match="no model 'x'; there are clipweather_base, "):
        create_model("x")
    with pytest.raises(ValueError, match="TransWeatherConfig has no field 'gamma_init'"):
        create_model("transweather", gamma_init=1.0)
    with pytest.raises(ValueError, match="no weights come with 'transweather', only with"):
        create_model("transweather", pretrained=True)
    with pytest.raises(FileNotFoundError, match=r"there is no file or folder .*nowhere\.pth"):
        create_model("transweather", pretrained="nowhere.pth")


def test_a_model_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_presets", dict(registry._presets))

    @register_model
    def mine() -> ClipWeatherConfig:
        return SMALL_CLIP

    assert "mine" in list_models()
    assert create_model("mine", num_kernels=2).config == SMALL_CLIP.replace(num_kernels=2)
    with pytest.raises(ValueError, match="there is a model 'mine' already"):
        register_model(mine)


def test_a_folder_s_configuration_counts(tmp_path: Path) -> None:
    network = small()
    network.save_pretrained(tmp_path)
    for loaded in (
        create_model("clipweather_base", pretrained=tmp_path),
        create_model(f"local-dir:{tmp_path}"),
        create_model(f"local-dir:{tmp_path}", pretrained=True),
        registry.pretrained(tmp_path),
    ):
        assert loaded.config == network.config
        assert not loaded.training
        assert torch.equal(
            loaded.state_dict()["encoder.norm1.weight"], network.encoder.norm1.weight
        )
    changed = create_model("clipweather_base", pretrained=tmp_path, prior_weights="x")
    assert changed.config == network.config.replace(prior_weights="x")
    with pytest.raises(ValueError, match="holds a ClipWeather, not a TransWeather"):
        create_model("transweather", pretrained=tmp_path)
    with pytest.raises(ValueError, match="has weights; leave pretrained out"):
        create_model(f"local-dir:{tmp_path}", pretrained="x")
    with pytest.raises(ValueError, match=r"TransWeather\.from_pretrained: .* holds a ClipWeather"):
        TransWeather.from_pretrained(tmp_path)


def test_a_file_takes_the_name_s_configuration(tmp_path: Path) -> None:
    network = small("TransWeather")
    torch.save(network.state_dict(), tmp_path / "best")
    loaded = create_model("transweather", pretrained=tmp_path / "best", **SMALL)
    assert not loaded.training
    image = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        assert torch.equal(loaded(image), network(image))
    with pytest.raises(ValueError, match="is a file and brings no configuration; use create_model"):
        TransWeather.from_pretrained(tmp_path / "best")


def test_making_a_network_builds_no_frozen_encoder(built: list[FakePriorEncoder]) -> None:
    create_model("clipweather_small")
    assert built == []
