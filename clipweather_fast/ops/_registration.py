"""The one place where operators meet torch.library."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

__all__ = ["define"]

_library = torch.library.Library("clipweather_fast", "DEF")


def define(
    name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Defines ``clipweather_fast::<name><schema>`` with one implementation for CPU and CUDA tensors.

    The last schema argument is ``str backend``: the choice was made before, from metadata.
    """
    _library.define(name + schema)
    _library.impl(name, implementation, "CPU")
    _library.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"clipweather_fast::{name}", fake, lib=_library)


def register_autograd(name: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    """Gives ``clipweather_fast::<name>`` its gradient."""
    torch.library.register_autograd(
        f"clipweather_fast::{name}", backward, setup_context=setup, lib=_library
    )
