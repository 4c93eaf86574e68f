"""Passes of a frozen form, recorded once for each size and replayed without the interpreter.

Between two kernels Python computes shapes, allocates and asks who watches: hundreds of times for a
picture, with caches that the kernels have just filled. For small pictures that is up to half of the
time. A recording keeps the kernels' calls (csrc/common/kernel_tape.h), PyTorch's own operators
between them, and the memory all of them work in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from threading import Lock
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from clipweather_fast.models._arena import Arena
from clipweather_fast.modules._joint import joined
from clipweather_fast.ops import _native
from clipweather_fast.ops._direct import dispatch_modes, observed, observer_rests

__all__ = ["Recordings"]

Compute = Callable[..., Tensor]
#: Values of the first input up to which a pass is recorded: of pictures with 2¹⁹ pixels. Above that
#: the interpreter's share is a few per cent, and the memory a recording keeps is many megabytes.
MOST_VALUES = 3 << 19
#: Recordings that a form keeps, the last ones used, and sizes whose passes it counts.
KEPT, COUNTED = 2, 16
#: Passes of a size that are computed before one is recorded, which takes as long as three.
PASSES_BEFORE = 3


class NotRecordable(Exception):
    """A pass that does something else than compute tensors from tensors."""


class Recordings:
    """Of one function of tensors, whose result depends on their values alone.

    The first passes of a size are computed, then one is recorded, later ones are replayed.
    """

    def __init__(self) -> None:
        self._passes: OrderedDict[Any, int] = OrderedDict()
        self._kept: OrderedDict[Any, Recording] = OrderedDict()
        self._in_use = Lock()

    def __call__(self, compute: Compute, *inputs: Tensor | None) -> Tensor:
        """``compute(*inputs)``: computed, or what computing would give, bit for bit.

        Args:
            compute: the function; the same in every call.
            inputs: CPU tensors or None.
        """
        first = inputs[0]
        assert first is not None
        if not 0 < first.numel() <= MOST_VALUES or dispatch_modes() or joined():
            return compute(*inputs)
        # One thread replays, others compute meanwhile: the memory is there once.
        if not self._in_use.acquire(blocking=False):
            return compute(*inputs)
        try:
            return self._result(compute, inputs)
        finally:
            self._in_use.release()

    def _result(self, compute: Compute, inputs: tuple[Tensor | None, ...]) -> Tensor:
        key = (torch.get_num_threads(), *map(_kind, inputs))
        recording = self._kept.get(key)
        if recording is not None:
            self._kept.move_to_end(key)
            return recording(inputs)
        passes = self._passes.get(key, 0)
        _put(self._passes, key, passes + 1, COUNTED)
        if passes != PASSES_BEFORE:  # beyond it are those that could not be recorded
            return compute(*inputs)
        try:
            recording = Recording(compute, inputs)
        except NotRecordable:
            return compute(*inputs)
        _put(self._kept, key, recording, KEPT)
        del self._passes[key]  # if it is put out, it has to earn its place again
        return recording.take_first()


def _put(kept: OrderedDict[Any, Any], key: Any, value: Any, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)


def _kind(tensor: Tensor | None) -> Any:
    return None if tensor is None else (tensor.dtype, tensor.shape, tensor.stride())


class Recording:
    """One pass, and the memory it computes in.

    Args:
        compute: the function.
        inputs: like those it will be replayed with.

    Raises:
        NotRecordable: if replaying does not give what computing gives.
    """

    def __init__(self, compute: Compute, inputs: tuple[Tensor | None, ...]) -> None:
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            self._inputs = [None if x is None else torch.empty_like(x) for x in inputs]
        self._arena, self._tape = Arena(), _native.core().KernelTape()
        with torch.inference_mode():
            self._fill(inputs)
            recorder = _Recorder(self._arena, self._tape)
            with observed(computes=True), recorder:
                result = compute(*self._inputs)
            self._steps, self._result = recorder.finished(), self._arena.unowned(result)
            expected = self._result.clone()
        del result
        # Whatever the steps miss shows: nothing but the inputs is left of this pass.
        self._arena.spoil()
        again = self(inputs)
        if not torch.allclose(again, expected, rtol=0, atol=0, equal_nan=True):
            raise NotRecordable
        self._first: Tensor | None = again

    def take_first(self) -> Tensor:
        """The result that it was made with, once."""
        first, self._first = self._first, None
        assert first is not None
        return first

    def _fill(self, inputs: tuple[Tensor | None, ...]) -> None:
        for own, x in zip(self._inputs, inputs, strict=True):
            if own is not None and x is not None:
                own.copy_(x)

    def __call__(self, inputs: tuple[Tensor | None, ...]) -> Tensor:
        """The function of these inputs, in memory of its own."""
        # What autocast would cast was recorded as cast.
        with torch.inference_mode(), torch.autocast("cpu", enabled=False):
            self._fill(inputs)
            for step in self._steps:
                step()
        return self._result.clone()


class _Recorder(TorchDispatchMode):
    """Notes kernels and operators, and hands out the memory they write to."""

    def __init__(self, arena: Arena, tape: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arena, self._tape, self._taped = arena, tape, 0
        self._steps: list[Callable[[], Any]] = []

    def __enter__(self) -> _Recorder:
        super().__enter__()  # type: ignore[no-untyped-call]
        _native.core().record_kernels(self._tape)
        return self

    def __exit__(self, *error: Any) -> None:
        _native.core().record_kernels(None)
        super().__exit__(*error)  # type: ignore[no-untyped-call]

    def finished(self) -> list[Callable[[], Any]]:
        """The steps of the pass."""
        self._take_kernels()
        return self._steps

    def _take_kernels(self) -> None:
        count = len(self._tape)
        if count > self._taped:
            self._steps.append(partial(self._tape.run, self._taped, count))
            self._taped = count

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        # Kernels of an operator are part of it.
        _native.core().record_kernels(None)
        try:
            out = function(*args, **kwargs)
            return out if observer_rests() else self._noted(function, args, kwargs, out)
        finally:
            _native.core().record_kernels(self._tape)

    def _noted(self, function: Any, args: Any, kwargs: Any, out: Any) -> Any:
        if not isinstance(out, Tensor) or out.layout != torch.strided or not out.is_cpu:
            raise NotRecordable
        if function.overloadpacket in _ALLOCATIONS:
            return self._arena.like(out)
        if not function._schema.is_mutable and any(
            _shares(x, out) for x in (*args, *kwargs.values())
        ):
            return out  # a view
        self._take_kernels()
        args, kwargs = tree_map_only(Tensor, self._arena.unowned, (args, kwargs))
        if function._schema.is_mutable:
            self._steps.append(partial(function, *args, **kwargs))
            return out
        kept = self._arena.like(out).copy_(out)
        to = self._arena.unowned(kept)
        if function.overloadpacket in _COPIES and to.is_contiguous():
            self._steps.append(partial(to.view(args[0].shape).copy_, args[0]))
        elif function.overloadpacket in _COPIES and to.shape == args[0].shape:
            self._steps.append(partial(to.copy_, args[0]))
        else:
            self._steps.append(partial(_compute_into, to, function, args, kwargs))
        return kept


def _shares(x: Any, y: Tensor) -> bool:
    """Whether x is a tensor whose memory y looks at; oneDNN's packed weights show none."""
    if not isinstance(x, Tensor) or x.layout != torch.strided:
        return False
    return x.untyped_storage().data_ptr() == y.untyped_storage().data_ptr()


def _compute_into(to: Tensor, function: Any, args: Any, kwargs: Any) -> None:
    to.copy_(function(*args, **kwargs))


_aten = torch.ops.aten
_ALLOCATIONS = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty}
_COPIES = {_aten.clone, _aten._to_copy, _aten.contiguous, _aten.reshape, _aten.to}
