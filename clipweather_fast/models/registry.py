"""The networks by name, as users of timm know it."""

from __future__ import annotations

import difflib
import fnmatch
import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch

from clipweather_fast.models import checkpoints
from clipweather_fast.models._skeleton import give_memory, without_values
from clipweather_fast.models.clip_weather import ClipWeather
from clipweather_fast.models.config import ClipWeatherConfig, NetworkConfig, TransWeatherConfig
from clipweather_fast.models.network import RestorationNetwork
from clipweather_fast.models.transweather import TransWeather

__all__ = [
    "create_model",
    "default_config",
    "description",
    "list_models",
    "pretrained",
    "register_model",
]

ARCHITECTURES: dict[str, type[RestorationNetwork]] = {
    network.config_class.architecture: network for network in (ClipWeather, TransWeather)
}
#: Weights that come with the package: folders of ``save_pretrained``, with a model card.
WEIGHTS: dict[str, Path] = {
    name: Path(__file__).parent / "weights" / name for name in ("clipweather_tiny",)
}

Preset = TypeVar("Preset", bound=Callable[[], NetworkConfig])
_presets: dict[str, Callable[[], NetworkConfig]] = {}


def register_model(preset: Preset) -> Preset:
    """Decorator: makes a configuration known under the name of the function that returns it.

    Raises:
        ValueError: if the name is taken.
    """
    name = preset.__name__
    if name in _presets:
        raise ValueError(f"register_model: there is a model {name!r} already")
    _presets[name] = preset
    return preset


def list_models(filter: str = "") -> list[str]:
    """The registered names, sorted.

    Args:
        filter: only names that match it: a pattern with ``*`` and ``?``, or a part of the name.
    """
    pattern = filter if any(sign in filter for sign in "*?[") else f"*{filter}*"
    return sorted(name for name in _presets if fnmatch.fnmatchcase(name, pattern))


def default_config(name: str) -> NetworkConfig:
    """The configuration registered under a name.

    Raises:
        ValueError: for an unknown name, with the nearest ones.
    """
    if name not in _presets:
        near = difflib.get_close_matches(name, _presets, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(list_models())}"
        raise ValueError(f"create_model: there is no model {name!r}; {hint}")
    return _presets[name]()


def description(name: str) -> str:
    """What a registered network is for, in a line.

    Raises:
        ValueError: for an unknown name.
    """
    default_config(name)
    return inspect.cleandoc(_presets[name].__doc__ or "").partition("\n")[0]


def create_model(
    name: str, pretrained: bool | str | os.PathLike[str] = False, **config_overrides: Any
) -> RestorationNetwork:
    """A network by name.

    Args:
        name: one of :func:`list_models`, or ``"local-dir:FOLDER"`` or ``"hf-hub:OWNER/NAME"``, the
            network that is there.
        pretrained: the source of its weights: a folder written by ``save_pretrained`` (whose
            configuration counts then), a checkpoint file, or ``"hf-hub:OWNER/NAME"``; True: those
            that come with this package; False: random weights.
        config_overrides: fields of the configuration to change.

    Returns:
        The network; in eval mode if it has weights, else in train mode.

    Raises:
        ValueError: for an unknown name or field, or weights that do not fit.
        FileNotFoundError: if there is no such source.
    """
    if name.startswith(("local-dir:", "hf-hub:")):
        if pretrained not in (False, True):
            raise ValueError(f"create_model: {name} has weights; leave pretrained out")
        return _from_source(name, None, **config_overrides)
    config = default_config(name)
    if pretrained is False:
        return _network(config.replace(**config_overrides))
    if pretrained is True:
        if name not in WEIGHTS:
            raise ValueError(
                f"create_model: no weights come with {name!r}, only with {', '.join(WEIGHTS)}; "
                f"pass pretrained=FOLDER, a checkpoint file or 'hf-hub:OWNER/NAME'"
            )
        pretrained = WEIGHTS[name]
    return _from_source(pretrained, config, **config_overrides)


def pretrained(
    source: str | os.PathLike[str], *, hub: Mapping[str, Any] | None = None, **changes: Any
) -> RestorationNetwork:
    """The network of a folder or repository, whatever its architecture, in eval mode.

    Arguments and errors as :meth:`RestorationNetwork.from_pretrained`; ``hub`` holds those of
    huggingface_hub.
    """
    return _from_source(source, None, hub, **changes)


def _from_source(
    source: str | os.PathLike[str],
    default: NetworkConfig | None,
    hub: Mapping[str, Any] | None = None,
    **changes: Any,
) -> RestorationNetwork:
    """The network at ``source``; ``default`` configures files that bring no configuration."""
    path = checkpoints.resolved(source, hub)
    config = default
    if path.is_dir() and (default is None or (path / checkpoints.CONFIG).exists()):
        config = _read_config(path)
        if default is not None and type(config) is not type(default):
            raise ValueError(
                f"create_model: {path} holds a {config.architecture}, not a {default.architecture}"
            )
    if config is None:
        raise ValueError(
            f"from_pretrained: {path} is a file and brings no configuration; use "
            f"create_model(NAME, pretrained={os.fspath(source)!r})"
        )
    # Compared before there is memory: what a configuration from a stranger asks for may be more
    # than the machine has, but not more than the tensors that come with it.
    with without_values():
        network = _network(config.replace(**changes))
    state = checkpoints.fitting_state(network, path)
    give_memory(network, torch.get_default_device())
    network.load_state_dict(state)
    if path.is_dir() and isinstance(network, ClipWeather):
        checkpoints.load_classifier(network, path)
    return network.eval()


def _read_config(folder: Path) -> NetworkConfig:
    values = checkpoints.read_config(folder)
    architecture = values.get("architecture")
    if not isinstance(architecture, str) or architecture not in ARCHITECTURES:
        raise ValueError(
            f"from_pretrained: {folder / checkpoints.CONFIG} must name an architecture "
            f"({', '.join(ARCHITECTURES)}), got {architecture!r}"
        )
    return ARCHITECTURES[architecture].config_class.from_dict(values)


def _network(config: NetworkConfig) -> RestorationNetwork:
    make: Callable[[NetworkConfig], RestorationNetwork] = ARCHITECTURES[config.architecture]
    return make(config)


# ---- what is registered ------------------------------------------------------------------------


@register_model
def clipweather_base() -> ClipWeatherConfig:
    """The paper's network."""
    return ClipWeatherConfig()


@register_model
def clipweather_small() -> ClipWeatherConfig:
    """Half the channels, and fewer keys at fine strides: about a quarter of the compute."""
    return ClipWeatherConfig(dims=(32, 64, 160, 256), reductions=(8, 4, 2, 1), decoder_tail=(8, 8))


@register_model
def clipweather_tiny() -> ClipWeatherConfig:
    """For processors and cameras: under 3 million parameters, and a small prior encoder.

    What the paper's width does for fine edges, a branch at full resolution does here, and the
    network computes what to add to the picture and how much of it to keep.
    """
    return ClipWeatherConfig(
        dims=(32, 48, 80, 128),
        reductions=(8, 4, 2, 1),
        decoder_tail=(16, 8),
        prior_encoder="convolutional:128",
        prior_weights=None,
        prior_dim=128,
        prior_tokens=16,
        prior_blocks=1,
        residual_output="gated",
        detail_channels=16,
    )


@register_model
def transweather() -> TransWeatherConfig:
    """The base network of the field, with the official checkpoints' layout."""
    return TransWeatherConfig()
