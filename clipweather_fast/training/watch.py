"""What happens in a run, told to whoever watches."""

from __future__ import annotations

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

__all__ = ["Meter", "Silent", "Watch", "memory_mib"]


class Watch(Protocol):
    """Is told what happens in a run."""

    def began(self, step: int, steps: int) -> None:
        """The loop begins after ``step`` of ``steps``."""

    def stepped(self, step: int) -> None:
        """A step is done."""

    def logged(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Measures of the last steps (``train``), or of held-out pictures (``validation``)."""

    def say(self, words: str) -> None:
        """Something to read."""

    def ended(self) -> None:
        """The loop is over, for whatever reason."""


class Silent:
    """Watches and says nothing."""

    def began(self, step: int, steps: int) -> None: ...

    def stepped(self, step: int) -> None: ...

    def logged(self, kind: str, step: int, values: Mapping[str, Any]) -> None: ...

    def say(self, words: str) -> None: ...

    def ended(self) -> None: ...


@dataclass
class Meter:
    """Sums over the steps since the last report; part of a checkpoint, so that means go on."""

    count: int = 0
    pictures: int = 0
    seconds: float = 0.0
    gradient_norm: float = 0.0
    lr: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)

    def add(
        self, parts: Mapping[str, float], norm: float, lr: float, pictures: int, seconds: float
    ) -> None:
        """Takes in a step."""
        self.count += 1
        self.pictures += pictures
        self.seconds += seconds
        self.gradient_norm += norm
        self.lr = lr
        for name, value in parts.items():
            self.parts[name] = self.parts.get(name, 0.0) + value

    def means(self) -> dict[str, Any]:
        """Of the losses and the norm; the last learning rate; pictures per second."""
        count = max(1, self.count)
        parts = {name: value / count for name, value in self.parts.items()}
        return {
            "loss": sum(parts.values()),
            "parts": parts,
            "gradient_norm": self.gradient_norm / count,
            "lr": self.lr,
            "pictures_per_second": self.pictures / self.seconds if self.seconds else 0.0,
        }


def memory_mib(device: torch.device) -> float:
    """The most memory that this process has held, on the GPU if it computes there, in MiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)
