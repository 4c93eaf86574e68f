"""Passes of a frozen form, recorded once for each size and replayed without the interpreter.

Between two kernels Python computes shapes, allocates and asks who watches: hundreds of times for a
picture, with caches that the kernels have just filled. For small pictures that is up to half of the
time. A recording keeps the kernels' calls (csrc/common/kernel_tape.h), PyTorch's own operators
between them, and the memory all of them work in.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import inf, prod
from threading import Lock
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from clipweather_fast._autocast import no_autocast
from clipweather_fast.models._arena import Arena
from clipweather_fast.modules._joint import joined
from clipweather_fast.ops import _native
from clipweather_fast.ops._direct import dispatch_modes, observed, observer_rests

__all__ = ["Recordings"]

Compute = Callable[..., Tensor]
#: Values of the first input up to which a pass is recorded: of pictures with 2¹⁹ pixels. Above that
#: the interpreter's share is a few per cent, and the memory a recording keeps is many megabytes.
MOST_VALUES = 3 << 19
#: Recordings that a form keeps, the last ones used: so many, and so many bytes in all.
KEPT, KEPT_BYTES = 4, 64 << 20
#: Sizes whose passes are counted.
COUNTED = 16
#: Passes of a size that are computed before one is recorded, which costs about as much as one more.
PASSES_BEFORE = 3
#: Seconds of a pass: what the interpreter takes of a longer one, hundreds would have to repay.
LONGEST = 0.25
#: As many times more each time that a size's recording was put out by others.
PATIENCE = 4


@dataclass(frozen=True)
class Unwritten:
    """An input that is written where a pass reads it, instead of copied there.

    Attributes:
        shape: (N, C, H, W), of float32 and channels-last.
        write: writes all of it.
    """

    shape: tuple[int, ...]
    write: Callable[[Tensor], None]

    def numel(self) -> int:
        """How many values it has."""
        return prod(self.shape)

    def room(self) -> Tensor:
        """Memory for it."""
        return torch.empty(self.shape, dtype=torch.float32, memory_format=torch.channels_last)

    def written(self) -> Tensor:
        """It, in memory of its own."""
        room = self.room()
        self.write(room)
        return room


Input = Tensor | Unwritten | None


class NotRecordable(Exception):
    """A pass that does something else than compute tensors from tensors."""


class Recordings:
    """Of one function of tensors, whose result depends on their values alone.

    The first passes of a size are computed, then one is recorded; the next is computed and
    replayed, in spoilt memory. If both give the same bits, later ones are replayed only.
    """

    def __init__(self) -> None:
        self._waiting: OrderedDict[Any, _Waiting] = OrderedDict()
        self._kept: OrderedDict[Any, Recording] = OrderedDict()
        # A child that was forked while it was in use computes.
        self._in_use = Lock()

    def __call__(self, compute: Compute, *inputs: Input, given: Any = None) -> Tensor:
        """``compute(*inputs)``: computed, or what computing would give, bit for bit.

        Args:
            compute: the function; the same in every call.
            inputs: CPU tensors, those that are still to be written, or None.
            given: whatever else the result depends on.
        """
        first = inputs[0]
        assert first is not None
        if not 0 < first.numel() <= MOST_VALUES or dispatch_modes() or joined():
            return _computed(compute, inputs)
        # One thread replays, others compute meanwhile: the memory is there once.
        if not self._in_use.acquire(blocking=False):
            return _computed(compute, inputs)
        try:
            return self._result(compute, inputs, given)
        finally:
            self._in_use.release()

    def _result(self, compute: Compute, inputs: tuple[Input, ...], given: Any) -> Tensor:
        key = (torch.get_num_threads(), given, *map(_kind, inputs))
        recording = self._kept.get(key)
        if recording is not None:
            self._kept.move_to_end(key)
            if recording.proven:
                return recording(inputs)
            result = _computed(compute, inputs)
            recording.proven = recording.gives(result, inputs)
            if not recording.proven:
                del self._kept[key]
            return result
        waiting = self._waiting.setdefault(key, _Waiting())
        self._waiting.move_to_end(key)
        while len(self._waiting) > COUNTED:
            self._waiting.popitem(last=False)
        waiting.passes += 1
        # Beyond that number: it could not be recorded.
        if waiting.passes != waiting.patience + 1 or waiting.shortest > LONGEST:
            begin = perf_counter()
            result = _computed(compute, inputs)
            waiting.shortest = min(waiting.shortest, perf_counter() - begin)
            return result
        try:
            recording = Recording(compute, inputs)
        except Exception:  # computing says what is wrong, or that only recording was
            return _computed(compute, inputs)
        if recording.bytes <= KEPT_BYTES:
            self._keep(key, recording)
        return recording.take_first()

    def _keep(self, key: Any, recording: Recording) -> None:
        self._kept[key] = recording
        while len(self._kept) > KEPT or sum(one.bytes for one in self._kept.values()) > KEPT_BYTES:
            out, _ = self._kept.popitem(last=False)
            patience = self._waiting.get(out, _Waiting()).patience * PATIENCE
            self._waiting[out] = _Waiting(patience=patience)


@dataclass
class _Waiting:
    """Passes of a size, how many are computed before one is recorded, seconds of the shortest."""

    passes: int = 0
    patience: int = PASSES_BEFORE
    shortest: float = inf


def _kind(x: Input) -> Any:
    if isinstance(x, Tensor):
        return x.dtype, x.shape, x.stride()
    return None if x is None else (Unwritten, x.shape)


def _room(x: Tensor | Unwritten) -> Tensor:
    return x.room() if isinstance(x, Unwritten) else torch.empty_like(x)


def _computed(compute: Compute, inputs: tuple[Input, ...]) -> Tensor:
    return compute(*[x.written() if isinstance(x, Unwritten) else x for x in inputs])


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(torch.uint8)


class Recording:
    """One pass, and the memory it computes in.

    Attributes:
        proven: whether it was seen to give what computing gives.

    Args:
        compute: the function.
        inputs: like those it will be replayed with.

    Raises:
        NotRecordable: if the pass does something that cannot be replayed.
    """

    def __init__(self, compute: Compute, inputs: tuple[Input, ...]) -> None:
        self._arena, self._tape = Arena(), _native.core().KernelTape()
        with torch.inference_mode():
            with torch.autocast("cpu", enabled=False):
                self._inputs = [None if x is None else _room(x) for x in inputs]
                self._fill(inputs)
            recorder = _Recorder(self._arena, self._tape)
            with observed(computes=True), recorder:
                first = compute(*self._inputs)
            self._steps, self._result = recorder.finished(), self._arena.unowned(first)
        self._first: Tensor | None = first.clone()
        self.proven = False

    def take_first(self) -> Tensor:
        """The result of the pass that was recorded, once."""
        first, self._first = self._first, None
        assert first is not None
        return first

    def gives(self, result: Tensor, inputs: tuple[Input, ...]) -> bool:
        """Whether a replay gives this result. Whatever the steps miss was no number before."""
        self._arena.spoil()
        try:
            return torch.equal(_bits(self(inputs)), _bits(result))
        except Exception:
            return False

    @property
    def bytes(self) -> int:
        """The memory it keeps."""
        return self._arena.bytes

    def _fill(self, inputs: tuple[Input, ...]) -> None:
        for own, x in zip(self._inputs, inputs, strict=True):
            if own is None or x is None:
                continue
            if isinstance(x, Unwritten):
                x.write(own)
            else:
                own.copy_(x)

    def __call__(self, inputs: tuple[Input, ...]) -> Tensor:
        """The function of these inputs, in memory of its own."""
        # What autocast would cast was recorded as cast.
        with torch.inference_mode(), no_autocast("cpu"):
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

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # As in restore/footprint.py: else PyTorch would load its compiler, which takes seconds.
        return False

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
        count = self._tape.size
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
        if out.is_conj() or out.is_neg():
            raise NotRecordable  # flags that a view of the memory does not show
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
# In inference mode operators that consist of others arrive whole.
_ALLOCATIONS = {_aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty}
_COPIES = {_aten.clone, _aten._to_copy, _aten.contiguous, _aten.reshape, _aten.to}
