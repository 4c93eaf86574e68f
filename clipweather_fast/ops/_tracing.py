"""What ``torch.compile`` must not look into."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["constant_while_tracing"]

P = ParamSpec("P")
R = TypeVar("R")


def constant_while_tracing(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: ``torch.compile`` calls the function while tracing and keeps its result.

    ``torch.compiler.assume_constant_result`` sets the same mark, but importing the compiler for it
    would make ``import clipweather_fast`` a second slower, and import Triton.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
