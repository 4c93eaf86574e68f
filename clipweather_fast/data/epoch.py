"""The epoch's number, where the worker processes of a loader see it change."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["SharedEpoch"]


class SharedEpoch:
    """A number in shared memory: workers that live longer than an epoch have copies of the dataset.

    A copy made by ``copy.deepcopy`` or ``pickle`` outside a loader has a number of its own.
    """

    def __init__(self, value: int = 0) -> None:
        self._number = torch.tensor(value).share_memory_()

    @property
    def value(self) -> int:
        """The epoch, 0 at first."""
        return int(self._number)

    @value.setter
    def value(self, epoch: int) -> None:
        self._number.fill_(epoch)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedEpoch:
        return SharedEpoch(self.value)
