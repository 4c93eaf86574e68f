"""A run's state as tensors and plain values, whole whatever the number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from clipweather_fast.training.ema import Ema
from clipweather_fast.training.processes import gathered, put

__all__ = ["captured", "differences", "restored"]

#: Settings that change where and how a run computes and reports, and not what.
_HARMLESS = (
    "run.output",
    "run.device",
    "run.threads",
    "run.sharding",
    "run.resume",
    "data.workers",
    "data.validation",
    "data.validation_clean",
    "data.validation_pictures",
    "checkpoint.",
    "log.",
)


def captured(
    student: nn.Module, optimizer: torch.optim.Optimizer | None = None, ema: Ema | None = None
) -> dict[str, Any]:
    """The weights, the optimizer's state by the parameters' names, and the averages, on the CPU.

    Every process must call it; what is spread over them is gathered.
    """
    content: dict[str, Any] = {"student": gathered(student.state_dict())}
    if ema is not None:
        content["ema"] = gathered(ema.average)
    if optimizer is not None:
        content["optimizer"] = {
            name: gathered(optimizer.state[parameter])
            for name, parameter in student.named_parameters()
            if parameter in optimizer.state
        }
    return content


def restored(
    content: Mapping[str, Any], student: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema
) -> None:
    """Puts what :func:`captured` gave into fresh ones.

    Raises:
        ValueError: if the weights' names or shapes are not the student's.
    """
    _fit(student.state_dict(), content["student"])
    for name, tensor in student.state_dict().items():
        put(tensor, content["student"][name])
    for name, tensor in ema.average.items():
        put(tensor, content["ema"][name])
    for name, parameter in student.named_parameters():
        state: Mapping[str, Tensor] = content["optimizer"].get(name, {})
        for key, value in state.items():
            # Moments lie as their parameter does, in its memory format too.
            optimizer.state[parameter][key] = _like(parameter, value, optimizer)


def _like(parameter: Tensor, value: Tensor, optimizer: torch.optim.Optimizer) -> Tensor:
    if value.dim() == 0:
        # Adam counts its steps on the CPU, except in its fused form.
        return value.to(parameter.device, copy=True) if optimizer.defaults["fused"] else value
    made = torch.zeros_like(parameter, memory_format=torch.preserve_format).detach()
    put(made, value)
    return made


def _fit(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    for name in sorted({*wanted, *found}):
        here = tuple(wanted[name].shape) if name in wanted else None
        there = tuple(found[name].shape) if name in found else None
        if here != there:
            raise ValueError(
                f"the checkpoint is of another student: {name} is {there} there and {here} here"
            )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """A line for each setting that is another now and changes what is computed."""
    old, new = _flat(before), _flat(now)
    return [
        f"  {key}: {old.get(key)!r} then, {new.get(key)!r} now"
        for key in sorted({*old, *new})
        if old.get(key) != new.get(key) and not key.startswith(_HARMLESS)
    ]


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"{section}.{key}": value
        for section, content in values.items()
        for key, value in content.items()
    }
