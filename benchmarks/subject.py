"""What a benchmark file says of the operator it measures, and of each case."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "DIRECTIONS",
    "SCOPES",
    "Case",
    "Contestant",
    "Inputs",
    "Subject",
    "Work",
    "leaf",
    "within",
]

#: Arguments of one call by name: tensors, and under ``"module"`` a module where one is measured.
Inputs = dict[str, Any]
Call = Callable[[Inputs], Tensor]

DIRECTIONS = ("forward", "backward", "both")
#: From the smallest run to the largest; a case belongs to its own scope and all larger ones.
SCOPES = ("quick", "headline", "full")


@dataclass(frozen=True)
class Case:
    """One row of the results."""

    size: Any
    dtype: torch.dtype
    direction: str = "forward"
    scope: str = "headline"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        return f"{self.size.name}, {self.dtype_name}, {self.direction}"


@dataclass(frozen=True)
class Work:
    """The least a call must do.

    ``bytes`` counts every input read once and every output written once. ``fma`` counts the
    multiply-adds of the cheapest known algorithm, activations left out. ``extra`` estimates the
    other instructions of a GPU (conversions, bounds, GELU), so that its issue roof can be stated.
    """

    bytes: int
    fma: int
    extra: int = 0


@dataclass(frozen=True)
class Contestant:
    """Someone who computes the same thing; ``layout`` is the memory format it is given."""

    name: str
    call: Call
    layout: str = "channels_last"
    threads: int = 1


@dataclass(frozen=True)
class Subject:
    """An operator (or module) under measurement.

    Attributes:
        topic: the result file's name.
        inputs: ``inputs(size, dtype, device, layout, generator)``.
        ours: ``ours(inputs, backend)``; backend None leaves the choice to the package.
        reference: the same in plain PyTorch.
        differentiable: names of the inputs that get gradients; ``"module.<name>"`` is a parameter.
        rotating: names of the inputs that are fresh in every set; the others are parameters.
        work: ``work(size, dtype, direction)``.
        explain: ``explain(inputs)``, each backend with ``"yes"``, ``"yes (chosen)"`` or why not.
        layouts: memory formats the plain opponents are given.
        opponents: further contestants for this device.
        unlike: contestants who do the same job by another function, for this device; their values
            are not compared.
        gate_size: a smaller size on which the values are checked where the true one is too much for
            fp64.
        around: a context the reference needs, entered outside of what is compiled.
        plain: whether the reference takes part, as it is and compiled.
        threads: threads of ours where they differ from the run's.
        matrix: whether the arithmetic is a matrix product (judged by that roof).
    """

    topic: str
    inputs: Callable[[Any, torch.dtype, str, str, torch.Generator], Inputs]
    ours: Callable[[Inputs, str | None], Tensor]
    reference: Call
    differentiable: tuple[str, ...]
    rotating: tuple[str, ...]
    work: Callable[[Any, torch.dtype, str], Work]
    explain: Callable[[Inputs], dict[str, str]]
    layouts: tuple[str, ...] = ("contiguous", "channels_last")
    opponents: Callable[[Case, str], list[Contestant]] = field(default=lambda case, device: [])
    unlike: Callable[[Case, str], list[Contestant]] = field(default=lambda case, device: [])
    gate_size: Callable[[Any], Any] = field(default=lambda size: size)
    around: Callable[[], AbstractContextManager[None]] | None = None
    plain: bool = True
    threads: int | None = None
    matrix: bool = False


def leaf(inputs: Inputs, name: str) -> Tensor:
    """The tensor behind a name of ``Subject.differentiable``."""
    if name.startswith("module."):
        parameter: Tensor = inputs["module"].get_parameter(name.removeprefix("module."))
        return parameter
    tensor: Tensor = inputs[name]
    return tensor


def within(subject: Subject, call: Call) -> Call:
    """``call`` inside the subject's context, if it has one."""
    around = subject.around
    if around is None:
        return call

    def inside(inputs: Inputs) -> Tensor:
        with around():
            return call(inputs)

    return inside


def in_layout(image: Tensor, layout: str) -> Tensor:
    """An image tensor in the memory format ``layout`` names."""
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    return image.contiguous(memory_format=formats[layout])
