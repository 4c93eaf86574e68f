"""A wrong kernel has no time: values and every gradient are checked before anything is measured.

Truth is the reference in fp64. The error allowed is twice that of the reference run in the
contestant's own dtype, plus a few units in the last place of the largest value.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.subject import Call, Case, Inputs, Subject, leaf, within

__all__ = ["Truth", "WrongResult", "truth_of"]

_UNITS = 8
#: Softmax, GELU and products in 16 bits are rounded at places of each algorithm's own choice.
_UNITS_OF_PEERS = 64


class WrongResult(AssertionError):
    """A contestant's values are off by more than rounding explains."""


def _evaluate(call: Call, inputs: Inputs, names: tuple[str, ...], seed: int) -> dict[str, Tensor]:
    """The output and the gradients, by name."""
    plain = [name for name in names if name in inputs]
    inputs = {**inputs, **{name: inputs[name].detach().requires_grad_() for name in plain}}
    leaves = [leaf(inputs, name) for name in names]
    y = call(inputs)
    generator = torch.Generator().manual_seed(seed)
    direction = torch.randn(y.shape, generator=generator).to(y.device, torch.bfloat16).to(y.dtype)
    grads = torch.autograd.grad(y, leaves, direction)
    named = {f"grad_{name}": grad for name, grad in zip(names, grads, strict=True)}
    return {"y": y.detach(), **named}


def _double(value: Any) -> Any:
    if isinstance(value, nn.Module):
        return copy.deepcopy(value).double()
    floating = isinstance(value, Tensor) and value.is_floating_point()
    return value.double() if floating else value


@dataclass(frozen=True)
class Truth:
    """The fp64 values of one set of inputs, and how far plain PyTorch is from them."""

    inputs: Inputs
    names: tuple[str, ...]
    values: dict[str, Tensor]
    reference_errors: dict[str, float]
    seed: int

    def check(self, name: str, call: Call) -> float:
        """The largest error of ``call`` relative to the largest value.

        Without gradients a network may take another way, which is what forward times are of: the
        output counts both times.

        Raises:
            WrongResult: naming the contestant, the tensor, its error and what was allowed.
        """
        found = _evaluate(call, self.inputs, self.names, self.seed)
        with torch.no_grad():
            output = self._compare(name, "y", call(self.inputs), _UNITS)
        return max(output, *(self._compare(name, key, found[key], _UNITS) for key in self.values))

    def check_output(self, name: str, call: Call) -> float:
        """As :meth:`check`, for the output of an opponent alone and with more room."""
        with torch.no_grad():
            return self._compare(name, "y", call(self.inputs), _UNITS_OF_PEERS)

    def _compare(self, name: str, key: str, found: Tensor, units: int) -> float:
        truth = self.values[key]
        if found.shape != truth.shape:
            raise WrongResult(f"{name}: {key} has shape {found.shape}, not {truth.shape}")
        scale = truth.abs().max().item() or 1.0
        error = (found.double() - truth).abs().max().item()
        bound = 2 * self.reference_errors[key] + units * torch.finfo(found.dtype).eps * scale
        if not error <= bound:
            raise WrongResult(f"{name}: {key} is off by {error:.3g}, allowed is {bound:.3g}")
        return error / scale


def truth_of(subject: Subject, case: Case, device: str) -> Truth:
    """The truth for a case, on inputs of its own seed."""
    seed = 20_260_101
    size = subject.gate_size(case.size)
    generator = torch.Generator().manual_seed(seed)
    inputs = subject.inputs(size, case.dtype, device, subject.layouts[-1], generator)
    names, reference = subject.differentiable, within(subject, subject.reference)
    doubles = {name: _double(value) for name, value in inputs.items()}
    values = _evaluate(reference, doubles, names, seed)
    own = _evaluate(reference, inputs, names, seed)
    errors = {key: (own[key].double() - values[key]).abs().max().item() for key in values}
    return Truth(inputs, names, values, errors, seed)
