"""Which registered network a state dict without a configuration belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from clipweather_fast.models import checkpoints
from clipweather_fast.models.network import RestorationNetwork
from clipweather_fast.models.registry import create_model, list_models

__all__ = ["from_file", "recognised", "without_prefixes"]


def recognised(state: Mapping[str, Tensor]) -> str | None:
    """The registered network whose parameters have these names and shapes, or None.

    Choices that change no shape (numbers of heads, for example) cannot be seen: the registered ones
    are assumed. A folder written by ``save_pretrained`` says them all.

    Args:
        state: tensors by name; prefixes that wrappers of modules leave on all names do not matter.
            With anything else in it, as strangers' files have, it is no network's.
    """
    if not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        return None
    for name in list_models():
        bare = without_prefixes(state, name)
        if {key: tuple(tensor.shape) for key, tensor in bare.items()} == _shapes(name):
            return name
    return None


def without_prefixes(state: Mapping[str, Tensor], name: str) -> dict[str, Tensor]:
    """The tensors by the names they have in a registered network."""
    return checkpoints._without_prefixes(dict(state), set(_shapes(name)))


@cache
def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        network = create_model(name)
    return {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}


def from_file(path: Path) -> RestorationNetwork:
    """The network of a checkpoint file without a configuration, in eval mode.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint, or no registered network has its names and shapes.
    """
    name = recognised(checkpoints.read_state_dict(path))
    if name is None:
        raise ValueError(
            f"{path} fits none of {', '.join(list_models())}; pass a folder with model.safetensors "
            "and config.json, as save_pretrained writes it"
        )
    return create_model(name, pretrained=path)
