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
            lists = (grads, *states)
            if not parameter.is_cpu:
                continue
            if parameter.is_contiguous() and all(tensors[i].is_contiguous() for tensors in lists):
                continue
            order = _order(parameter)
            for name, tensors in zip(("grad", *STATES), lists, strict=False):
                if not tensors[i].permute(order).is_contiguous():
                    tensors[i] = torch.empty_like(parameter).copy_(tensors[i])
                    if name == "grad":
                        parameter.grad = tensors[i]
                    else:
                        self.state[parameter][name] = tensors[i]
            for tensors in (params, *lists):
                tensors[i] = tensors[i].permute(order)
        return has_complex


class Adam(_AsTheyLie):
    """As ``torch.optim.Adam``."""


class AdamW(_AsTheyLie, torch.optim.AdamW):
    """As ``torch.optim.AdamW``."""


def _order(parameter: Tensor) -> list[int]:
    """The axes in the order in which they lie in memory.

    Raises:
        ValueError: if there is other memory in between, which the kernel would change.
    """
    shape, strides = parameter.shape, parameter.stride()
    order = sorted(range(parameter.dim()), key=lambda axis: (shape[axis] > 1, -strides[axis]))
    if not parameter.permute(order).is_contiguous():
        raise ValueError(
            "Adam: fused=True takes parameters that are dense in memory, got one of shape "
            f"{tuple(shape)} with strides {strides}; make it contiguous, or leave fused out"
        )
    return order
