"""Notices weights that were written past PyTorch's count of changes.

``weight.data.mul_(…)``, as averaged weights are kept in many training loops, changes values and
neither the tensor nor its version. So a few of each weight's values are compared as well.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from clipweather_fast.ops import _native

__all__ = ["Fingerprint"]

#: Of each weight, from its first value to its last.
SAMPLES = 8


class Fingerprint:
    """A few values of each of some weights, as they were.

    Args:
        weights: float32, on the CPU. They are not kept: ask :meth:`holds` only while each lies
            where it lay.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        self._places = array(
            "Q",
            [weight.data_ptr() + 4 * place for weight in weights for place in _places(weight)],
        )
        self._values = self._now()

    def holds(self) -> bool:
        """Whether the values are what they were, bit for bit."""
        return self._now() == self._values

    def _now(self) -> bytes:
        address, count = self._places.buffer_info()
        values: bytes = _native.core().words_at(address, count)
        return values


def _places(weight: Tensor) -> list[int]:
    """Offsets from the first value, in values."""
    count = weight.numel()
    if count == 0:
        return []
    if not torch.ops.aten.is_non_overlapping_and_dense(weight):
        return [0]
    return sorted({round(i * (count - 1) / (SAMPLES - 1)) for i in range(SAMPLES)})
