"""Which backend runs an operator call.

Every op states, for each backend, a predicate ``why_not(*args) -> str | None`` that reads metadata
only. :func:`select` walks :data:`BACKENDS` and takes the first whose predicate returns ``None``; a
backend named by argument, :func:`use_backend` or ``CLIPWEATHER_BACKEND`` runs or raises
:class:`BackendUnavailable` with the predicate's sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from clipweather_fast import env
from clipweather_fast.ops._tracing import constant_while_tracing

__all__ = ["BACKENDS", "BackendUnavailable", "Operator", "explain", "select", "use_backend"]

#: In the order of automatic choice.
BACKENDS = ("cuda", "triton", "cpu", "reference")

WhyNot = Callable[..., "str | None"]


class BackendUnavailable(RuntimeError):
    """A backend was named that cannot run this call; the message says why."""


@dataclass(frozen=True)
class Operator:
    """What the choice of a backend needs to know of an op.

    ``why_not[backend]`` takes the op's checked arguments and returns ``None`` or a full sentence.
    ``prefers`` may name backends to try before the usual order for these arguments (a measured
    exception, e.g. PyTorch's own attention for thousands of keys); it never limits the choice.
    """

    name: str
    why_not: dict[str, WhyNot]
    prefers: Callable[..., tuple[str, ...]] | None = None
    #: Where the automatic choice runs something else under a backend's name than the name alone
    #: would (PyTorch's fused attention in place of the definition): what it runs, for ``explain``.
    automatic: dict[str, str] = field(default_factory=dict)


_named: ContextVar[str | None] = ContextVar("clipweather_backend", default=None)
_operators: dict[Callable[..., Any], tuple[Operator, Callable[..., tuple[Any, ...]]]] = {}


def _validated(name: str, source: str) -> str:
    if name != "auto" and name not in BACKENDS:
        raise ValueError(f"{source} must be one of auto, {', '.join(BACKENDS)}, got {name!r}")
    return name


@constant_while_tracing
def requested_backend() -> str:
    """The backend named by :func:`use_backend` or ``CLIPWEATHER_BACKEND``, else ``"auto"``.

    Under ``torch.compile`` it is read once, while tracing.
    """
    named = _named.get()
    if named is not None:
        return named
    return _validated(env.read("CLIPWEATHER_BACKEND"), "CLIPWEATHER_BACKEND")


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Names the backend of every operator call inside the ``with`` block (this thread only).

    Args:
        name: ``"auto"``, ``"cuda"``, ``"triton"``, ``"cpu"`` or ``"reference"``.

    Raises:
        ValueError: for another name.
        BackendUnavailable: by a call inside the block that this backend cannot run.
    """
    token = _named.set(_validated(name, "use_backend: name"))
    try:
        yield
    finally:
        _named.reset(token)


def select(op: Operator, backend: str | None, *args: Any) -> str:
    """The name of the backend that runs ``op(*args)``."""
    if backend is not None and backend != "auto" and backend not in BACKENDS:
        raise ValueError(
            f"{op.name}: backend must be one of auto, {', '.join(BACKENDS)}, got {backend!r}"
        )
    name = requested_backend() if backend is None else backend
    if name != "auto":
        reason = op.why_not[name](*args)
        if reason is not None:
            raise BackendUnavailable(
                f"{op.name}: backend {name!r} cannot run this call: {reason}; "
                f"{_automatically(backend)} takes the best one that can"
            )
        return name
    if op.prefers is not None:
        for candidate in op.prefers(*args):
            if op.why_not[candidate](*args) is None:
                return candidate
    for candidate in BACKENDS:
        if op.why_not[candidate](*args) is None:
            return candidate
    raise BackendUnavailable(f"{op.name}: no backend can run this call")


def _automatically(backend: str | None) -> str:
    """How to ask for the automatic choice where a backend was named."""
    if backend is not None:
        return "backend='auto'"
    return "CLIPWEATHER_BACKEND=auto" if _named.get() is None else "use_backend('auto')"


def explainable(op: Operator, checked: Callable[..., tuple[Any, ...]]) -> Callable[..., Any]:
    """Decorator: lets :func:`explain` find the op behind a public function.

    ``checked`` has the function's signature, raises its errors and returns ``why_not``'s arguments.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        _operators[function] = (op, checked)
        return function

    return register


def explain(op: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, str]:
    """For each backend ``"yes"``, or the sentence that says why it cannot run this very call.

    The automatic choice is marked ``"yes (chosen)"``, or ``"yes (chosen, by …)"`` where it runs
    something else than the backend does when it is named.

    Args:
        op: a function of :mod:`clipweather_fast.ops`.
        *args, **kwargs: the call's own arguments.

    Raises:
        TypeError: if ``op`` is not an operator; and whatever the call would raise.
    """
    if op not in _operators:
        names = ", ".join(sorted(operator.name for operator, _ in _operators.values()))
        raise TypeError(
            f"explain: op must be a function of clipweather_fast.ops ({names}), got {op!r}"
        )
    operator, checked = _operators[op]
    kwargs.pop("backend", None)
    arguments = checked(*args, **kwargs)
    answers = {name: operator.why_not[name](*arguments) or "yes" for name in BACKENDS}
    chosen = select(operator, "auto", *arguments)
    runs = operator.automatic.get(chosen)
    answers[chosen] = "yes (chosen)" if runs is None else f"yes (chosen, by {runs})"
    return answers
