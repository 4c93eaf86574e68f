"""When a registered operator may be called past PyTorch's dispatcher.

Handing a call to the dispatcher and back to Python takes some 40 µs, four times that where nothing
of it is in the processor's caches: more than a kernel on a small image. It is of no use to ordinary
tensors that nobody traces, transforms or profiles; then the same implementation is called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import local
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.compiler import is_compiling
from torch.overrides import has_torch_function

__all__ = [
    "dispatch_modes",
    "dispatcher_idle",
    "observed",
    "observer_looks",
    "observer_rests",
    "unobserved",
]

# None of these is public. Where a version of PyTorch lacks one, every call takes the dispatcher.
_keys_of: Callable[[Tensor], Any] | None = getattr(torch._C, "_dispatch_keys", None)
_modes: Callable[[], int] | None = getattr(torch._C, "_len_torch_dispatch_stack", None)
_found: tuple[Callable[[], Any] | None, ...] = (
    getattr(torch._C, "_are_functorch_transforms_active", None),
    getattr(torch._C, "_is_tracing", None),
    getattr(torch.autograd, "_profiler_enabled", None),
)
_watchers = tuple(watcher for watcher in _found if watcher is not None)
_known = None not in (_keys_of, _modes, *_found) and hasattr(forward_ad, "_current_level")


class _Observer(local):
    """Of this thread: dispatch modes that only look at tensors, and whether they look."""

    modes = 0
    rests = False
    computes = False


_observer = _Observer()


@contextmanager
def observed(*, computes: bool = False) -> Iterator[None]:
    """Within it, in this thread, one dispatch mode keeps nobody from calling directly.

    It looks at the tensors that a pass allocates and need not see every operator; so it sees the
    pass as it is without it.

    Args:
        computes: whether the values count as well.
    """
    before, _observer.computes = _observer.computes, computes
    _observer.modes += 1
    try:
        yield
    finally:
        _observer.modes -= 1
        _observer.computes = before


def dispatch_modes() -> int:
    """How many dispatch modes see this thread's operators; one at least where it is not known."""
    return 1 if _modes is None else _modes()


@contextmanager
def unobserved() -> Iterator[None]:
    """Within it, in this thread, the mode of :func:`observed` looks at nothing."""
    before, _observer.rests = _observer.rests, True
    try:
        yield
    finally:
        _observer.rests = before


def observer_looks() -> bool:
    """Whether a pass is only made to be looked at: dense layers then need not compute."""
    return _observer.modes > 0 and not _observer.rests and not _observer.computes


def observer_rests() -> bool:
    """Whether the mode of :func:`observed` has to let everything pass as it is."""
    return _observer.rests


#: Dispatch keys of plain CPU and CUDA tensors, as numbers; those met so far.
_ordinary: set[int] = set()


def dispatcher_idle(arguments: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would do nothing to a call but run the implementation and autograd.

    False while ``torch.compile``, ``torch.export``, ``torch.jit.trace``, a dispatch or function
    mode, a ``torch.func`` transform, forward-mode differentiation or the profiler wants to see the
    operator, and where an argument is a subclass or lazily negated, or on no CPU or CUDA device.
    """
    if is_compiling() or not _known:
        return False
    if forward_ad._current_level >= 0:
        return False
    for watcher in _watchers:
        if watcher():
            return False
    assert _modes is not None
    modes = _modes()
    if modes and modes > _observer.modes:
        return False
    if has_torch_function(arguments):  # of a subclass without dispatch keys of its own, or a mode
        return False
    assert _keys_of is not None
    for argument in arguments:
        if isinstance(argument, Tensor):
            keys = _keys_of(argument).raw_repr()
            if keys not in _ordinary and not _is_ordinary(keys, argument.device.type):
                return False
    return True


def _is_ordinary(keys: int, device: str) -> bool:
    """Whether plain tensors there, made within or without inference mode, have these keys."""
    assert _keys_of is not None
    if device not in ("cpu", "cuda"):
        return False
    for inference in (False, True):
        with unobserved(), torch.inference_mode(inference):
            _ordinary.add(_keys_of(torch.empty(0, device=device)).raw_repr())
    return keys in _ordinary
