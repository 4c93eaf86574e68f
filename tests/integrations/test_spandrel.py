"""spandrel, and with it ComfyUI and chaiNNer, loads our checkpoints by their state dict."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from clipweather_fast.models import create_model

spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed")


@pytest.fixture(scope="module")
def registry() -> spandrel.ArchRegistry:
    """A copy of spandrel's registry with our networks, added twice: the second time is nothing."""
    from clipweather_fast.integrations.spandrel import install

    registry = spandrel.MAIN_REGISTRY.copy()
    install(registry)
    install(registry)
    return registry


@pytest.mark.parametrize(
    ("name", "wrapper"),
    [
        ("clipweather_tiny", "plain"),
        ("clipweather_tiny", "params_ema"),
        ("clipweather_tiny", "_orig_mod."),
        ("transweather", "state_dict"),
    ],
)
def test_a_checkpoint_file_is_recognised_and_restores(
    name: str, wrapper: str, registry: spandrel.ArchRegistry, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    network = create_model(name).eval()
    with torch.no_grad():  # untrained, the tiny one gives back what it gets
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
    state = network.state_dict()
    if wrapper.endswith("."):
        state = {f"{wrapper}{name}": tensor for name, tensor in state.items()}
    content = {wrapper: state} if wrapper in ("params_ema", "state_dict") else state
    torch.save(content, tmp_path / "model.pth")

    model = spandrel.ModelLoader(registry=registry).load_from_file(tmp_path / "model.pth")
    assert (model.architecture.id, model.tags, model.scale) == ("clipweather_fast", [name], 1)
    image = torch.rand(1, 3, 50, 77)
    with torch.inference_mode():
        assert torch.equal(model(image), network(image).clamp(0, 1))


def test_safetensors_of_save_pretrained_are_recognised(
    registry: spandrel.ArchRegistry, tmp_path: Path
) -> None:
    create_model("clipweather_tiny").save_pretrained(tmp_path)
    loader = spandrel.ModelLoader(registry=registry)
    assert loader.load_from_file(tmp_path / "model.safetensors").tags == ["clipweather_tiny"]


def test_other_networks_stay_what_they_were(registry: spandrel.ArchRegistry) -> None:
    state = {name: t.clone() for name, t in create_model("clipweather_tiny").state_dict().items()}
    state.popitem()
    with pytest.raises(spandrel.UnsupportedModelError):
        registry.load(state)


@pytest.mark.parametrize(
    "state", [{"epoch": 3, "weight": torch.zeros(2)}, {0: torch.zeros(2)}, {"state": {1: None}}]
)
def test_what_is_no_state_dict_is_left_to_the_others(
    state: dict[Any, Any], registry: spandrel.ArchRegistry
) -> None:
    assert not registry["clipweather_fast"].detect(state)


def test_install_adds_to_the_registry_that_spandrel_uses_and_only_then() -> None:
    program = (
        "import spandrel\n"
        "import clipweather_fast.integrations.spandrel as ours\n"
        "before = 'clipweather_fast' in spandrel.MAIN_REGISTRY\n"
        "ours.install()\n"
        "print(before, 'clipweather_fast' in spandrel.MAIN_REGISTRY)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n"
