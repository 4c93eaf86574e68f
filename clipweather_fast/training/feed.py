"""Which pictures go into which step: a function of the seed and the step alone."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from clipweather_fast.data import EpochSampler
from clipweather_fast.training.sections import DataSection
from clipweather_fast.training.task import Batch

__all__ = ["Feed", "Samples"]


class Samples(Protocol):
    """A data set whose sample ``index`` in epoch ``epoch`` is always the same."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Batch: ...

    def set_epoch(self, epoch: int) -> None: ...


class Feed:
    """The batches of a run.

    An epoch is a permutation of the data set (:class:`clipweather_fast.data.EpochSampler`), cut
    into batches of ``section.batch``; what remains is left out. A batch is cut into one micro-batch
    per process and accumulation, so that a step sees the same pictures whatever their numbers.

    Args:
        samples: the data set.
        section: batch, workers.
        seed: of the permutations.
        accumulate: micro-batches per step and process.
        rank, world: this process among all.

    Raises:
        ValueError: if a batch cannot be divided so, or the data are fewer than a batch.
    """

    def __init__(
        self,
        samples: Samples,
        section: DataSection,
        *,
        seed: int,
        accumulate: int = 1,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self.samples, self.section, self.seed = samples, section, seed
        self.accumulate, self.rank, self.world = accumulate, rank, world
        parts = accumulate * world
        if section.batch % parts:
            raise ValueError(
                f"configuration: data.batch must be a multiple of processes × run.accumulate = "
                f"{world} × {accumulate}, got {section.batch}"
            )
        self.micro = section.batch // parts
        self.steps_per_epoch = len(samples) // section.batch
        if self.steps_per_epoch == 0:
            raise ValueError(
                f"configuration: data.batch is {section.batch}, but there are {len(samples)} "
                "pictures; take a smaller batch, or more data.samples_per_epoch"
            )

    def steps(self, epoch: int, done: int = 0) -> Iterator[list[Batch]]:
        """The micro-batches of this process, a list per step, from step ``done`` of an epoch on."""
        self.samples.set_epoch(epoch)
        indices = self.indices(epoch, done)
        workers = self.section.workers
        # Workers live for an epoch: they copy the data set when they start.
        loader: DataLoader[Any] = DataLoader(
            _AsDataset(self.samples),
            batch_sampler=indices,
            num_workers=workers,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),
            prefetch_factor=4 if workers else None,
            worker_init_fn=_ignore_signals,
        )
        batches = iter(loader)
        for _ in range(len(indices) // self.accumulate):
            yield [next(batches) for _ in range(self.accumulate)]

    def indices(self, epoch: int, done: int = 0) -> list[list[int]]:
        """The samples of this process's micro-batches in an epoch, from step ``done`` on."""
        sampler = EpochSampler(len(self.samples), self.seed, self.rank, self.world)
        sampler.set_epoch(epoch, done * self.section.batch)
        order = list(sampler)
        count = (self.steps_per_epoch - done) * self.accumulate
        return [order[i * self.micro : (i + 1) * self.micro] for i in range(count)]


def _ignore_signals(worker: int) -> None:
    """Ctrl-C reaches a whole group of processes; the trainer alone decides what it means."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _AsDataset(Dataset[Batch]):
    def __init__(self, samples: Samples) -> None:
        self.samples = samples

    def __getitem__(self, index: int) -> Batch:
        return self.samples[index]

    def __len__(self) -> int:
        return len(self.samples)
