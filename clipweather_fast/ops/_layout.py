"""Memory formats: what the kernels read, and what a caller gets back."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["channels_last", "empty_grad", "empty_like_image", "is_channels_last"]


def is_channels_last(x: Tensor) -> bool:
    """Whether (N, C, H, W) lies as dense (N, H, W, C) and is not just as well dense NCHW."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def empty_like_image(x: Tensor) -> Tensor:
    """Room for a result shaped like ``x``: channels-last if ``x`` is, contiguous otherwise."""
    layout = torch.channels_last if is_channels_last(x) else torch.contiguous_format
    return torch.empty_like(x, memory_format=layout)


def channels_last(x: Tensor) -> Tensor:
    """``x`` (N, C, H, W) as dense (N, H, W, C) memory: itself where it already is, else a copy."""
    return x.contiguous(memory_format=torch.channels_last)


def empty_grad(x: Tensor, parameter: Tensor | None) -> Tensor:
    """Room for a parameter's gradient, dense; an empty tensor where the parameter is absent."""
    if parameter is None:
        return x.new_empty(0)
    return torch.empty_like(parameter, memory_format=torch.contiguous_format)
