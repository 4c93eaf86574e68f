"""One call of an operator in a test: its tensors, its other arguments, and how it is run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Call:
    """``op(**tensors, **options)``; ``activations`` are the tensors of the compute dtype."""

    op: Callable[..., Any]
    tensors: dict[str, Tensor | None]
    options: dict[str, Any]
    activations: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        return self.present[self.activations[0]].dtype

    @property
    def device(self) -> torch.device:
        return self.present[self.activations[0]].device

    @property
    def present(self) -> dict[str, Tensor]:
        """The tensors that are not None."""
        return {name: t for name, t in self.tensors.items() if t is not None}

    def map(self, change: Callable[[Tensor], Tensor], names: Iterable[str] | None = None) -> Call:
        """The call with ``change`` made to the tensors named (default: to all)."""
        chosen = set(self.tensors if names is None else names)
        tensors = {
            name: t if t is None or name not in chosen else change(t)
            for name, t in self.tensors.items()
        }
        return replace(self, tensors=tensors)

    def to(self, *target: Any) -> Call:
        return self.map(lambda t: t.detach().to(*target))

    def with_options(self, **options: Any) -> Call:
        return replace(self, options={**self.options, **options})

    def with_tensors(self, **tensors: Any) -> Call:
        return replace(self, tensors={**self.tensors, **tensors})

    def __call__(self, **more: Any) -> tuple[Tensor, ...]:
        """The outputs, always as a tuple."""
        result = self.op(**self.tensors, **self.options, **more)
        return result if isinstance(result, tuple) else (result,)


def output_gradients(outputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Fixed random gradients of the outputs: the same for every dtype, device and layout."""
    generator = torch.Generator().manual_seed(7)
    return tuple(
        torch.randn(y.shape, generator=generator).bfloat16().to(y.device, y.dtype) for y in outputs
    )


def results(
    call: Call,
    *,
    requires_grad: Iterable[str] | None = None,
    reshape: Callable[[Tensor], Tensor] = lambda t: t,
    outputs: Iterable[int] | None = None,
    **more: Any,
) -> dict[str, Tensor]:
    """Every output and every gradient of a call, by name.

    Args:
        call: what to run.
        requires_grad: names of the tensors to differentiate by (default: all).
        reshape: gives the output gradients another memory layout.
        outputs: numbers of the outputs that the loss uses (default: all).
        **more: further arguments, such as ``backend``.
    """
    wanted = list(call.present if requires_grad is None else requires_grad)
    # detach() keeps the strides, an expanded input's too.
    leaf = call.map(lambda t: t.detach()).map(lambda t: t.requires_grad_(), wanted)
    ys = leaf(**more)
    chosen = list(range(len(ys)) if outputs is None else outputs)
    gradients = output_gradients(ys)
    reached = [i for i in chosen if ys[i].requires_grad]
    grads = torch.autograd.grad(
        [ys[i] for i in reached],
        [leaf.present[name] for name in wanted],
        [reshape(gradients[i]) for i in reached],
        allow_unused=True,  # an output may not depend on every argument: then zeros
        materialize_grads=True,
    )
    found = {f"output {i}": ys[i].detach() for i in chosen}
    return found | {f"grad_{name}": g for name, g in zip(wanted, grads, strict=True)}


def assert_same_bits(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert set(first) == set(second)
    for name, t in first.items():
        other = second[name]
        assert t.dtype == other.dtype, name
        assert torch.equal(t, other), f"{name} differs by {(t - other).abs().max().item():.3g}"


def _surrounded(t: Tensor, channels_last: bool = False) -> Tensor:
    """The same values inside a larger tensor of NaN: reading outside shows."""
    if channels_last and t.dim() == 4:
        return _surrounded(t.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    room = t.new_full([size + 2 for size in t.shape], float("nan"))
    inner = room[(slice(1, -1),) * t.dim()]
    inner.copy_(t)
    return inner


def _transposed(t: Tensor) -> Tensor:
    return t.transpose(-1, -2).contiguous().transpose(-1, -2) if t.dim() > 1 else t


def _permuted(t: Tensor) -> Tensor:
    """Dense, with the first two axes' memory exchanged."""
    return t.transpose(0, 1).contiguous().transpose(0, 1) if t.dim() > 1 else t


def _channels_last(t: Tensor) -> Tensor:
    layout = torch.channels_last if t.dim() == 4 else torch.contiguous_format
    return t.contiguous(memory_format=layout)


def _every_second(t: Tensor) -> Tensor:
    room = t.new_full([*t.shape[:-1], 2 * t.shape[-1]], float("nan"))
    room[..., ::2] = t
    return room[..., ::2]


def _expanded(t: Tensor, axis: int) -> Tensor:
    """The first slice along an axis in the place of every one, in no more memory than it needs."""
    return t.narrow(axis, 0, 1).expand(t.shape) if t.shape[axis] else t


#: Memory layouts of an operator's activations. All but the expanded ones keep the values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda t: t.contiguous(),
    "channels_last": _channels_last,
    "sliced": _surrounded,
    "channels_last_sliced": lambda t: _surrounded(t, channels_last=True),
    "transposed": _transposed,
    "permuted": _permuted,
    "every_second": _every_second,
    "expanded_batch": lambda t: _expanded(t, 0),
    "expanded_inside": lambda t: _expanded(t, 1),
    "expanded_last": lambda t: _expanded(t, t.dim() - 1),
}
