"""The one place where operators meet torch.library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

__all__ = ["define", "implementation", "register_autograd"]

#: The file of an op's folder that computes for a backend.
FILES = {"cpu": "native_cpu", "cuda": "native_cuda", "triton": "triton_kernels"}

_library = torch.library.Library("clipweather_fast", "DEF")


def define(
    name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Defines ``clipweather_fast::<name><schema>`` for CPU and CUDA tensors alike.

    The last schema argument is ``str backend``: the choice was made before, from metadata.
    """
    _library.define(name + schema)
    _library.impl(name, implementation, "CPU")
    _library.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"clipweather_fast::{name}", fake, lib=_library)


def register_autograd(name: str, backward: Callable[..., Any], setup: Callable[..., Any]) -> None:
    """Gives ``clipweather_fast::<name>`` its gradient, and ``<name>_backward`` none: it raises.

    Without that, PyTorch would warn and treat the gradients as constants.
    """
    torch.library.register_autograd(
        f"clipweather_fast::{name}", backward, setup_context=setup, lib=_library
    )

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{name}: second derivatives are not implemented; use backend='reference'"
        )

    torch.library.register_autograd(f"clipweather_fast::{name}_backward", refuse, lib=_library)


@cache
def implementation(op: str, backend: str) -> Any:
    """The module ``ops/<op>/<file of the backend>``, imported when first needed."""
    return importlib.import_module(f"clipweather_fast.ops.{op}.{FILES[backend]}")
