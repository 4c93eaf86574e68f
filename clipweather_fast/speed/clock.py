"""Times of calls that take turns, under a limit of time."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

__all__ = ["Times", "finisher", "in_turn", "once"]

#: More rounds tell nothing new of a median.
MOST_ROUNDS = 50


@dataclass(frozen=True)
class Times:
    """Seconds of one contestant's calls.

    Attributes:
        seconds: one per round, at least one.
        first_call: whether the only one is its first call, because a second did not fit into the
            time; what a program does once is in it.
    """

    seconds: tuple[float, ...]
    first_call: bool = False

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def rounds(self) -> int:
        return len(self.seconds)

    def quantile(self, share: float) -> float:
        """The time that this share of the rounds did not exceed."""
        ordered = sorted(self.seconds)
        return ordered[round(share * (len(ordered) - 1))]


def finisher(device: torch.device) -> Callable[[], None]:
    """What waits until a device has done all that it was given."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


def once(call: Callable[[], object], finish: Callable[[], None]) -> float:
    """Seconds of one call."""
    finish()
    began = time.perf_counter()
    call()
    finish()
    return time.perf_counter() - began


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    first: Mapping[str, float],
    *,
    limit: float,
    finish: Callable[[], None],
    most: int = MOST_ROUNDS,
) -> dict[str, Times]:
    """Calls everybody once in every round, so that what else the machine does meets all alike.

    Args:
        calls: by name.
        first: seconds that each one's first call took, of which the first round's are predicted.
        limit: seconds for all rounds. If not even one fits, the first calls count.
        finish: waits for the device.
        most: rounds.

    Returns:
        The times of each.
    """
    found: dict[str, list[float]] = {name: [] for name in calls}
    one_round, left = sum(first[name] for name in calls), limit
    gc.collect()
    gc.disable()
    try:
        for _ in range(most):
            if one_round > left:
                break
            spent = {name: once(call, finish) for name, call in calls.items()}
            for name, seconds in spent.items():
                found[name].append(seconds)
            one_round = sum(spent.values())
            left -= one_round
    finally:
        gc.enable()
    return {
        name: Times(tuple(seconds)) if seconds else Times((first[name],), first_call=True)
        for name, seconds in found.items()
    }
