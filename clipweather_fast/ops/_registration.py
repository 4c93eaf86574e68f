"""The one place where operators meet torch.library."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from clipweather_fast.ops._direct import dispatcher_idle

__all__ = ["call", "define", "implementation", "implemented", "register_autograd"]

#: The file of an op's folder that computes for a backend.
FILES = {"cpu": "native_cpu", "cuda": "native_cuda", "triton": "triton_kernels"}

_library = torch.library.Library("clipweather_fast", "DEF")
_implementations: dict[str, Callable[..., Any]] = {}
_functions: dict[str, type[torch.autograd.Function]] = {}


def define(
    name: str, schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> None:
    """Defines ``clipweather_fast::<name><schema>`` for CPU and CUDA tensors alike.

    The last schema argument is ``str backend``: the choice was made before, from metadata.
    """
    _implementations[name] = implementation
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

    def forward(ctx: Any, *arguments: Any) -> Any:
        # Not as a method setup_context: PyTorch binds a signature per call for that.
        output = _implementations[name](*arguments)
        setup(ctx, arguments, output)
        return output

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    _functions[name] = type(name, (torch.autograd.Function,), members)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(
            f"{name}: second derivatives are not implemented; use backend='reference'"
        )

    torch.library.register_autograd(f"clipweather_fast::{name}_backward", refuse, lib=_library)


def call(name: str, *arguments: Any) -> Any:
    """``torch.ops.clipweather_fast.<name>(*arguments)``, past the dispatcher where that is idle."""
    if dispatcher_idle(arguments):
        if not (torch.is_grad_enabled() and _wants_gradient(arguments)):
            return _implementations[name](*arguments)
        if name in _functions:
            return _functions[name].apply(*arguments)
    return getattr(torch.ops.clipweather_fast, name)(*arguments)


def implemented(name: str) -> Callable[..., Any]:
    """What computes ``clipweather_fast::<name>``: without dispatcher and gradient, for callers that
    have both themselves."""
    return _implementations[name]


def _wants_gradient(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


@cache
def implementation(op: str, backend: str) -> Any:
    """The module ``ops/<op>/<file of the backend>``, imported when first needed."""
    return importlib.import_module(f"clipweather_fast.ops.{op}.{FILES[backend]}")
