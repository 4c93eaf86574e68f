"""The order of an epoch's samples, over processes and across interruptions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from clipweather_fast.data.choices import Choices

__all__ = ["EpochSampler"]


class EpochSampler(Sampler[int]):
    """Every index once per epoch, in an order that (seed, epoch) alone decides.

    The order is dealt out to the processes in turn, so that the batches of all processes together
    are those of a single process with a batch that many times larger. Where the number of processes
    does not divide what is to come, the first indices of the order serve again.

    Args:
        length: the number of samples of the dataset.
        seed: decides the order together with the epoch.
        rank: this process's number, 0 to ``world - 1``.
        world: the number of processes.
        shuffle: False takes the samples as they come.

    Attributes:
        epoch: the current epoch.
        start: how many samples of this epoch all processes together have already had.
    """

    def __init__(
        self, length: int, seed: int = 0, rank: int = 0, world: int = 1, *, shuffle: bool = True
    ) -> None:
        if length < 1:
            raise ValueError(f"EpochSampler: length must be at least 1, got {length}")
        if not 0 <= rank < world:
            raise ValueError(f"EpochSampler: rank must be 0 to world - 1 = {world - 1}, got {rank}")
        self.length, self.seed, self.rank, self.world = length, seed, rank, world
        self.shuffle = shuffle
        self.epoch = self.start = 0

    def set_epoch(self, epoch: int, start: int = 0) -> None:
        """Goes to an epoch, or into the middle of one.

        Args:
            epoch: its number.
            start: samples of it that all processes together have had: steps times global batch.
        """
        if not 0 <= start <= self.length + self.world - 1:
            raise ValueError(
                f"EpochSampler: start must be 0 to the {self.length} samples of an epoch, "
                f"got {start}"
            )
        self.epoch, self.start = epoch, start

    def __len__(self) -> int:
        """Samples that this process still has in this epoch."""
        return -(-max(0, self.length - self.start) // self.world)

    def __iter__(self) -> Iterator[int]:
        order = self._order()
        rest = order[self.start :]
        missing = len(self) * self.world - len(rest)
        while missing > 0:
            rest += order[:missing]
            missing = len(self) * self.world - len(rest)
        return iter(rest[self.rank :: self.world])

    def _order(self) -> list[int]:
        if not self.shuffle:
            return list(range(self.length))
        seed = Choices("order", self.seed, self.epoch).number()
        generator = torch.Generator().manual_seed(seed)
        order: list[int] = torch.randperm(self.length, generator=generator).tolist()
        return order
