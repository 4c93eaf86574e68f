"""How a training run is shown: a bar on a terminal, a line per report elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["TrainingDisplay"]


class TrainingDisplay:
    """The losses, pictures per second, memory and the time that remains, on standard error."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console = console
        self._progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[words]}"),
            console=console,
            disable=not console.is_terminal,
            speed_estimate_period=300,
        )
        self._task = self._progress.add_task("training", total=None, words="")
        self._first, self._steps, self._start = 0, 0, 0.0

    def began(self, step: int, steps: int) -> None:
        """Shows the bar."""
        self._first, self._steps, self._start = step, steps, time.monotonic()
        self._progress.update(self._task, completed=step, total=steps)
        self._progress.start()

    def stepped(self, step: int) -> None:
        """Moves it."""
        self._progress.update(self._task, completed=step)

    def logged(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """The last report stays beside the bar; elsewhere, and of held-out pictures, a line."""
        words = _training(values) if kind == "train" else _held_out(values)
        if kind == "train" and self._console.is_terminal:
            self._progress.update(self._task, words=words)
        else:
            left = "" if kind != "train" else f", {self._left(step)} left"
            self.say(f"step {step} of {self._steps}: {words}{left}")

    def say(self, words: str) -> None:
        """A line, above the bar if there is one."""
        if self._console.is_terminal:
            self._console.print(Text(words))
        else:  # rich would wrap, or replace what the terminal's encoding lacks
            print(words.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)

    def ended(self) -> None:
        """Leaves the bar as it is."""
        self._progress.stop()

    def _left(self, step: int) -> str:
        done = step - self._first
        seconds = (time.monotonic() - self._start) / max(1, done) * (self._steps - step)
        hours, rest = divmod(round(seconds), 3600)
        return f"{hours}:{rest // 60:02}:{rest % 60:02}"


def _training(values: Mapping[str, Any]) -> str:
    parts = " ".join(f"{name} {value:.4g}" for name, value in values["parts"].items())
    return (
        f"loss {values['loss']:.4g} ({parts}), {values['pictures_per_second']:.3g} pictures/s, "
        f"{values['memory_mib']:,.0f} MiB"
    )


def _held_out(values: Mapping[str, Any]) -> str:
    return "held out: " + ", ".join(f"{name} {value:.4g}" for name, value in values.items())
