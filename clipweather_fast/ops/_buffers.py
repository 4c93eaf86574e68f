"""How tensors meet kernels that know one layout: dense copies in, and results copied back out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from clipweather_fast.ops._layout import channels_last

__all__ = ["accumulator", "aligned_image", "dense_image", "dense_parameter", "filled"]


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """What sums over ``dtype`` are formed in, and parameters are passed as."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dense_image(x: Tensor | None) -> Tensor | None:
    """An image as dense (N, H, W, C) memory."""
    return None if x is None else channels_last(x)


def aligned_image(x: Tensor | None) -> Tensor | None:
    """An image as dense (N, H, W, C) memory that a GPU's widest loads may start at.

    A slice of a larger tensor can start anywhere.
    """
    dense = dense_image(x)
    if dense is None or dense.data_ptr() % 16 == 0:
        return dense
    return dense.clone(memory_format=torch.channels_last)


def dense_parameter(parameter: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """A parameter as dense memory in the accumulator's dtype of activations of ``dtype``."""
    return None if parameter is None else parameter.to(accumulator(dtype)).contiguous()


@contextmanager
def filled(
    target: Tensor | None,
    dtype: torch.dtype | None = None,
    *,
    image: bool = False,
    keep: bool = False,
) -> Iterator[Tensor | None]:
    """Memory a kernel can fill, copied to ``target`` afterwards unless it is ``target`` itself.

    Args:
        target: the result; None or an empty tensor means that it is not wanted.
        dtype: what the kernel writes; default: the dtype of ``target``.
        image: the kernel writes (N, H, W, C), else the dense order of ``target``'s shape.
        keep: the kernel reads what ``target`` holds.
    """
    if target is None or target.numel() == 0:
        yield None
        return
    layout = torch.channels_last if image else torch.contiguous_format
    if target.dtype == (dtype or target.dtype) and target.is_contiguous(memory_format=layout):
        yield target
        return
    room = torch.empty_like(target, dtype=dtype, memory_format=layout)
    if keep:
        room.copy_(target)
    yield room
    target.copy_(room)
