"""``clipweather classify`` and ``clipweather models``."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from clipweather_fast.cli import app
from clipweather_fast.clip import TextFeatures
from clipweather_fast.models import create_model, list_models
from clipweather_fast.restore import Restorer
from command import here, words


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Made-up text features of the small network's width."""
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(3, 32), dim=1)
    TextFeatures(features).save(tmp_path / "text.safetensors")
    return tmp_path / "text.safetensors"


def test_pictures_get_probabilities_and_bad_ones_a_name(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    Image.effect_noise((40, 30), 60).save(folder / "a\nb.png")
    (folder / "c.png").write_text("no picture")
    done = here("classify", folder, "-n", checkpoint, "--text", text, "--json")
    assert done.exit_code == 1
    assert done.stderr.startswith(f"{folder}/c.png: ")
    found = json.loads(done.stdout)
    assert found["input"] == str(folder / "a\nb.png")
    shares = list(found["weather"].values())
    assert set(found["weather"]) == {"snow", "rain", "raindrop"}
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) == pytest.approx(1)

    plain = CliRunner().invoke(
        app,
        ["classify", str(folder / "a\nb.png"), "-n", str(checkpoint), "--text", str(text)],
    )
    assert plain.exit_code == 0
    assert plain.output.startswith(rf"{folder}/a\nb.png: ")
    assert plain.output.count("%") == 3


def test_without_text_features_nothing_is_guessed(checkpoint: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = here("classify", tmp_path / "a.png")
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.startswith(
        "clipweather classify: clipweather_tiny cannot name the weather: its weights come without "
        "CLIP's features of the weathers"
    )
    assert result.stderr.count("\n") == 1
    for option in ("--model", "--text"):
        assert option in result.stderr
    for python in ("Restorer", "restorer.", "clipweather_fast.clip", "Usage"):
        assert python not in result.stderr
    arguments = ["classify", str(tmp_path / "a.png"), "-n", str(checkpoint)]
    result = here(*arguments)
    assert result.exit_code == 2
    assert f"{checkpoint} cannot name the weather: its weights come without" in result.stderr
    result = CliRunner().invoke(app, [*arguments, "--text", str(tmp_path / "a.png")])
    assert result.exit_code == 2
    assert "is not a file of text features" in words(result.output)


def test_a_network_without_a_prior_and_features_of_another_are_said_so(
    checkpoint: Path, text: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    plain = create_model("transweather", dims=(8, 16, 16, 32), depths=(1, 1, 1, 1))
    plain.save_pretrained(tmp_path / "plain")
    result = here("classify", tmp_path / "a.png", "-n", tmp_path / "plain", "--text", text)
    assert result.exit_code == 2
    assert "it has no weather prior" in result.stderr
    other = tmp_path / "other.safetensors"
    TextFeatures(torch.eye(3)).save(other)
    result = here("classify", tmp_path / "a.png", "-n", checkpoint, "--text", other)
    assert result.exit_code == 2
    assert f"{other} do not belong to {checkpoint}" in result.stderr


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_a_picture_for_which_memory_does_not_suffice_is_named(
    error: Exception, checkpoint: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classify = Restorer.classify

    def fail(self: Restorer, picture: object) -> object:
        if isinstance(picture, Path):
            raise error
        return classify(self, picture)

    monkeypatch.setattr(Restorer, "classify", fail)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    result = here("classify", tmp_path / "a.png", "-n", checkpoint, "--text", text)
    assert result.exit_code == 1
    assert result.output.startswith(f"{tmp_path / 'a.png'}: {type(error).__name__}")


def test_models_lists_every_registered_network() -> None:
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0
    assert [line.split()[0] for line in result.output.splitlines()[::2]] == list_models()
    assert re.search(r"^transweather +38\.1 M  The base network", result.output, re.MULTILINE)
    result = CliRunner().invoke(app, ["models", "tiny"])
    assert [line.split()[0] for line in result.output.splitlines()[::2]] == ["clipweather_tiny"]
    result = CliRunner().invoke(app, ["models", "restormer"])
    assert result.exit_code == 2
    assert "no name matches 'restormer'" in words(result.output)
