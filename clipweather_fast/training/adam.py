"""PyTorch's Adam, shown every parameter as the dense memory it is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["Adam", "AdamW"]

#: Of a parameter, in the order in which Adam hands them on.
STATES = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")


class _AsTheyLie(torch.optim.Adam):
    """Adam that hands its fused CPU kernel dense tensors of one memory format.

    That kernel goes through all tensors of a parameter as they lie. Of a gradient that is not dense
    in the order of its shape, as a channels-last one, it makes a copy that it does not use; one in
    another memory format than its parameter it applies to the wrong elements (seen in PyTorch 2.11
    and 2.15). The state keeps the parameters' shapes.
    """

    def _init_group(
        self, group: Any, params: list[Tensor], grads: list[Tensor], *rest: list[Tensor]
    ) -> bool:
        has_complex: bool = super()._init_group(group, params, grads, *rest)  # type: ignore[no-untyped-call]
        if not group["fused"] or group["differentiable"]:
            return has_complex
        states = [tensors for tensors in rest[:-1] if tensors]  # the last are numbers of steps
        for i, parameter in enumerate(params):
            if parameter.dim() < 2 or parameter.device.type != "cpu":
                continue
            grads[i] = _lying_as(parameter, grads[i])
            for name, tensors in zip(STATES, states, strict=False):
                self.state[parameter][name] = tensors[i] = _lying_as(parameter, tensors[i])
            if _is_image(parameter):
                for tensors in (params, grads, *states):
                    tensors[i] = tensors[i].permute(0, 2, 3, 1)
        return has_complex


class Adam(_AsTheyLie):
    """As ``torch.optim.Adam``."""


class AdamW(_AsTheyLie, torch.optim.AdamW):
    """As ``torch.optim.AdamW``."""


def _is_image(parameter: Tensor) -> bool:
    """Whether it lies as a channels-last image does, and not just as well otherwise."""
    last = parameter.dim() == 4 and parameter.is_contiguous(memory_format=torch.channels_last)
    return last and not parameter.is_contiguous()


def _lying_as(parameter: Tensor, other: Tensor) -> Tensor:
    """``other`` in the memory format of ``parameter``: itself where it is."""
    if other.stride() == parameter.stride():
        return other
    return torch.empty_like(parameter).copy_(other)
