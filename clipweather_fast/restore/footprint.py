"""What a network allocates while a picture passes through it, without the time that takes.

A mode of PyTorch sees every tensor come and go. On the CPU the networks of this package run on
small real pictures meanwhile, in the form in which they would restore a large one, with their dense
layers left out: these give zeros of the right shape, so that no weights are read. What a tensor's
size depends on shows in two pictures. Any other network runs on tensors without memory (PyTorch's
fake tensors).
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipweather_fast.modules._joint import in_step
from clipweather_fast.ops._direct import observed, observer_rests

__all__ = ["Call", "Growth", "Trace", "dry_trace", "fake_trace", "growth"]

Call = Callable[[Tensor], Tensor]


@dataclass
class Trace:
    """Allocations of one pass.

    Attributes:
        pixels: of the picture.
        sizes: bytes of each allocation.
        events: in order: i where allocation i is made, -1 - i where it is given back.
        asked: numbers of events that had been when a layer asked other tiles for something.
        now, peak, paused: bytes alive: now, at most, at most where a layer asked.
    """

    pixels: int
    sizes: list[int] = field(default_factory=list)
    events: list[int] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    now: int = 0
    peak: int = 0
    paused: int = 0

    def keys(self, layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
        """See :class:`clipweather_fast.modules._joint.Joint`: notes what waits there."""
        self.rims(layer, ())
        return tokens

    def rims(self, layer: object, images: tuple[Tensor, ...]) -> None:
        """See :class:`clipweather_fast.modules._joint.Joint`: notes what waits there."""
        self.asked.append(len(self.events))
        self.paused = max(self.paused, self.now)


@dataclass(frozen=True)
class Growth:
    """The most bytes alive, by pixels: fixed + linear · pixels + square · pixels².

    Attributes:
        fixed, linear, square: upper bounds, each by itself.
        paused: linear part of what is alive where a layer asks.
    """

    fixed: float
    linear: float
    square: float
    paused: float


def growth(small: Trace, large: Trace) -> Growth | None:
    """What two passes say of all others; None: they were not the same pass at two sizes."""
    if small.events != large.events or small.asked != large.asked:
        return None
    p, q = small.pixels, large.pixels
    parts = [_grown(*sizes, p, q) for sizes in zip(small.sizes, large.sizes, strict=True)]
    now, most, waiting = [0.0] * 3, [0.0] * 3, 0.0
    asked = set(small.asked)
    for done, event in enumerate(small.events, start=1):
        sign, part = (1, parts[event]) if event >= 0 else (-1, parts[-1 - event])
        now = [a + sign * b for a, b in zip(now, part, strict=True)]
        most = [max(pair) for pair in zip(now, most, strict=True)]
        if done in asked:
            waiting = max(waiting, now[1])
    return Growth(most[0], most[1], most[2], waiting)


def _grown(small: int, large: int, p: int, q: int) -> tuple[float, float, float]:
    """Fixed, linear and square part of a tensor's bytes at p and q pixels."""
    if large * p <= small * q:
        linear = max(0.0, (large - small) / (q - p))
        return small - linear * p, linear, 0.0
    square = (large / q - small / p) / (q - p)
    linear = small / p - square * p
    return (0.0, linear, square) if linear >= 0 else (0.0, 0.0, large / q**2)


def dry_trace(network: Call, height: int, width: int, frozen: bool = True) -> Trace:
    """What a network of this package allocates for a small picture on the CPU.

    Args:
        network: its values are of no use then, and nothing may be kept of them.
        height, width: of the picture.
        frozen: count the frozen form where the network has one; else the modules.
    """
    recorder = _Recorder(height * width, dry=True)
    with torch.inference_mode(), observed() if frozen else nullcontext(), recorder:
        return recorder.run(network, height, width, torch.device("cpu"))


def fake_trace(network: Call, height: int, width: int, device: torch.device) -> Trace:
    """What any network allocates, by PyTorch's word on shapes, in about a second.

    Raises:
        Exception: whatever a network does that fake tensors cannot.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    recorder = _Recorder(height * width, dry=False)
    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True), recorder:
        return recorder.run(network, height, width, device)


class _Recorder(TorchDispatchMode):
    """Writes a trace of the tensors it sees come and go."""

    def __init__(self, pixels: int, dry: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.trace = Trace(pixels)
        self._dense = _dense_layers() if dry else {}
        self._alive: dict[int, weakref.ref[Any]] = {}

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nobody compiles here, and PyTorch would load its compiler to leave this class out of it.
        return False

    def run(self, network: Call, height: int, width: int, device: torch.device) -> Trace:
        """One pass of a picture, within this mode."""
        shape = 1, 3, height, width
        layout = torch.channels_last
        image = torch.zeros(shape, device=device).contiguous(memory_format=layout)
        with in_step(self.trace):
            network(image)
        return self.trace

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if observer_rests():
            return func(*args, **kwargs)
        dense = self._dense.get(func)
        results = func(*args, **kwargs) if dense is None else dense(*args, **kwargs)
        given: set[int] | None = None
        for value in (results,) if isinstance(results, Tensor) else tree_leaves(results):
            if not isinstance(value, Tensor):
                continue
            storage = value.untyped_storage()
            if storage._cdata in self._alive:
                continue
            if given is None:
                given = {_key(it) for it in tree_leaves((args, kwargs)) if isinstance(it, Tensor)}
            if storage._cdata not in given:  # no view of a weight
                self._begin(storage)
        return results

    def _begin(self, storage: Any) -> None:
        trace, key = self.trace, storage._cdata
        number, size = len(trace.sizes), storage.nbytes()
        trace.sizes.append(size)
        trace.events.append(number)
        trace.now += size
        trace.peak = max(trace.peak, trace.now)

        def end(_: object) -> None:
            del self._alive[key]
            trace.events.append(-1 - number)
            trace.now -= size

        self._alive[key] = weakref.ref(storage, end)


def _key(value: Tensor) -> int:
    # Packed weights have no storage that PyTorch would show.
    return int(value.untyped_storage()._cdata) if value.layout == torch.strided else 0


# ---- dense layers without their arithmetic -----------------------------------------------------


@cache
def _dense_layers() -> dict[Any, Callable[..., Tensor]]:
    """By operator, what gives zeros in place of its result."""
    aten, mkldnn = torch.ops.aten, torch.ops.mkldnn
    found: dict[Any, Callable[..., Tensor]] = {
        aten.linear.default: _linear,
        aten.addmm.default: lambda bias, x, w, **_: x.new_zeros(x.shape[0], w.shape[1]),
        aten.mm.default: lambda x, w: x.new_zeros(x.shape[0], w.shape[1]),
        aten.conv2d.default: _conv,
        aten.convolution.default: _convolution,
        aten.conv_transpose2d.input: _conv_transpose,
    }
    for name, stands in (
        ("_linear_pointwise", _linear),
        ("_convolution_pointwise", _mkldnn_conv),
        ("_convolution_pointwise_", _total),
    ):
        if hasattr(mkldnn, name):
            packet = getattr(mkldnn, name)
            found |= {getattr(packet, overload): stands for overload in packet.overloads()}
    return found


def _total(total: Tensor, *rest: Any) -> Tensor:
    return total


def _linear(x: Tensor, weight: Tensor, *rest: Any) -> Tensor:
    return x.new_zeros(*x.shape[:-1], weight.shape[0])


def _image(x: Tensor, weight: Tensor, channels: int, sides: list[int]) -> Tensor:
    last = any(it.is_contiguous(memory_format=torch.channels_last) for it in (x, weight))
    layout = torch.channels_last if last else torch.contiguous_format
    zeros = torch.empty(x.shape[0], channels, *sides, dtype=x.dtype, memory_format=layout)
    return zeros.zero_()


def _both(values: Any) -> list[int]:
    return list(values) if len(values) == 2 else list(values) * 2


def _conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    dilation: Any = (1, 1),
    groups: int = 1,
) -> Tensor:
    axes = zip(x.shape[2:], weight.shape[2:], *map(_both, (stride, padding, dilation)), strict=True)
    sides = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in axes]
    return _image(x, weight, weight.shape[0], sides)


def _conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = (1, 1),
    padding: Any = (0, 0),
    output_padding: Any = (0, 0),
    groups: int = 1,
    dilation: Any = (1, 1),
) -> Tensor:
    each = map(_both, (stride, padding, output_padding, dilation))
    axes = zip(x.shape[2:], weight.shape[2:], *each, strict=True)
    sides = [(n - 1) * s - 2 * p + d * (k - 1) + o + 1 for n, k, s, p, o, d in axes]
    return _image(x, weight, weight.shape[1] * groups, sides)


def _convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
) -> Tensor:
    if transposed:
        return _conv_transpose(x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _conv(x, weight, bias, stride, padding, dilation, groups)


def _mkldnn_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    padding: Any,
    stride: Any,
    dilation: Any,
    groups: int,
    *rest: Any,
) -> Tensor:
    return _conv(x, weight, bias, stride, padding, dilation, groups)
