"""What a trainer is given: a task, which knows the student and what is wrong with its answers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor, nn

__all__ = ["Batch", "Examined", "Progress", "Task", "seed_of"]

#: Tensors by name, one entry per picture along the first dimension.
Batch = dict[str, Tensor]


def seed_of(*parts: object) -> int:
    """A seed in [0, 2⁶³) for these parts: the same ones give the same, others another."""
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") >> 1


@dataclass(frozen=True)
class Progress:
    """Where in the run a micro-batch is.

    Attributes:
        step, steps: steps of the optimizer done, and in all.
        epoch, epochs: the same of epochs.
        seed: for the random choices of this micro-batch. It depends on the run's seed, the step,
            the micro-batch and the process alone, so that a resumed run repeats them.
    """

    step: int
    steps: int
    epoch: int
    epochs: int
    seed: int = 0


@dataclass(frozen=True)
class Examined:
    """What a look at held-out pictures gives.

    Attributes:
        measures: by name, a number per picture, (N,).
        pictures: by heading, (N, 3, H, W) in [0, 1], for the contact sheet.
    """

    measures: Mapping[str, Tensor]
    pictures: Mapping[str, Tensor]


class Task(Protocol):
    """A student, its teachers, and the terms of its loss.

    Attributes:
        student: what is trained. The trainer replaces it by a wrapper of it where there are several
            processes, so every forward pass must go through it.
        frozen: what is only asked. The trainer moves it to the device; it is in no checkpoint.
    """

    student: nn.Module
    frozen: dict[str, nn.Module]

    def parts(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The weighted terms of the loss, scalars by name; the total is their sum.

        The batch is as the data set gives it, on the CPU.
        """

    def examine(self, batch: Batch) -> Examined:
        """What the student makes of held-out pictures; called without gradient, in eval mode."""

    def example(self, count: int) -> Batch:
        """A batch of the right shapes without data, for measuring."""

    def export(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """Writes what a user of the student loads, with the student's ``state`` as its weights."""
