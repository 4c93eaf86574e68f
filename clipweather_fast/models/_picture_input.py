"""A picture as a network reads it: padded, normalised, channels-last."""

from __future__ import annotations

import torch
from torch import Tensor

from clipweather_fast.models._padding import padded
from clipweather_fast.ops import _native

__all__ = ["network_input", "write_network_input"]


def network_input(image: Tensor, multiple: int, minimum: int, dtype: torch.dtype) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1], padded as :func:`padded` does, in [-1, 1] and a dtype."""
    picture = padded(image, multiple, minimum)
    picture = picture.contiguous(memory_format=torch.channels_last) * 2
    picture -= 1
    # After the normalisation: 16 bits hold values about zero better than values up to one.
    return picture.to(dtype)


def write_network_input(image: Tensor, out: Tensor) -> None:
    """The same into memory, in one native pass and bit for bit.

    Args:
        image: float32, on the CPU, of any strides.
        out: (N, 3, rows, columns), float32, channels-last.
    """
    n, _, height, width = image.shape
    _native.core().network_input_cpu(
        image.data_ptr(),
        image.stride(),
        out.data_ptr(),
        (n, height, width, *out.shape[2:]),
        torch.get_num_threads(),
    )
