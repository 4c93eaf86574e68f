"""When a registered operator may be called past PyTorch's dispatcher.

Handing a call to the dispatcher and back to Python takes some 40 µs, four times that where nothing
of it is in the processor's caches: more than a kernel on a small image. It is of no use to ordinary
tensors that nobody traces, transforms or profiles; then the same implementation is called directly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function

__all__ = ["dispatcher_idle"]

# None of these is public. Where a version of PyTorch lacks one, every call takes the dispatcher.
_keys_of: Callable[[Tensor], Any] | None = getattr(torch._C, "_dispatch_keys", None)
_found: tuple[Callable[[], Any] | None, ...] = (
    getattr(torch._C, "_len_torch_dispatch_stack", None),
    getattr(torch._C, "_are_functorch_transforms_active", None),
    getattr(torch._C, "_is_tracing", None),
    getattr(torch.autograd, "_profiler_enabled", None),
)
_watchers = tuple(watcher for watcher in _found if watcher is not None)
_known = None not in (_keys_of, *_found) and hasattr(forward_ad, "_current_level")


@cache
def _ordinary(device: str) -> frozenset[int]:
    """The dispatch keys of a plain tensor, made within and without inference mode."""
    assert _keys_of is not None
    found = set()
    for inference in (False, True):
        with torch.inference_mode(inference):
            found.add(_keys_of(torch.empty(0, device=device)).raw_repr())
    return frozenset(found)


def dispatcher_idle(arguments: tuple[Any, ...]) -> bool:
    """Whether the dispatcher would do nothing to a call but run the implementation and autograd.

    False while ``torch.compile``, ``torch.export``, ``torch.jit.trace``, a dispatch or function
    mode, a ``torch.func`` transform, forward-mode differentiation or the profiler wants to see the
    operator, and where an argument is a subclass or lazily negated, or on no CPU or CUDA device.
    """
    if torch.compiler.is_compiling() or not _known:
        return False
    if forward_ad._current_level >= 0 or any(watcher() for watcher in _watchers):
        return False
    if has_torch_function(arguments):  # of a subclass without dispatch keys of its own, or a mode
        return False
    for argument in arguments:
        if not isinstance(argument, Tensor):
            continue
        device = argument.device.type
        if device not in ("cpu", "cuda"):
            return False
        assert _keys_of is not None
        if _keys_of(argument).raw_repr() not in _ordinary(device):
            return False
    return True
