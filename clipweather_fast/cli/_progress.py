"""The progress bar: how many are done, how many per second, how long it still takes."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

__all__ = ["Bar", "shown"]


def shown(name: object) -> str:
    """A file's name as one printable line."""
    text = str(name)
    return text if text.isprintable() else repr(text)[1:-1]


class _Speed(ProgressColumn):
    """Pictures per second, over the last minutes."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g} {self.unit}/s" if speed else f"– {self.unit}/s")


class Bar:
    """A progress bar on a terminal's standard error; elsewhere only the lines of :meth:`say`."""

    def __init__(self, total: int | None, unit: str, doing: str = "restoring") -> None:
        console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(unit),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            # Pictures of a large network take many seconds each.
            speed_estimate_period=300,
        )
        self._task = self._progress.add_task(doing, total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def advance(self, count: int = 1) -> None:
        self._progress.update(self._task, advance=count)

    def reached(self, count: int, total: int | None) -> None:
        """Sets how many are done, of how many if that is known."""
        self._progress.update(self._task, completed=count, total=total)

    def left_out(self, count: int = 1) -> None:
        """Takes what needed no work out of the total, so that it does not count as speed."""
        total = self._progress.tasks[0].total
        if total is not None:
            self._progress.update(self._task, total=total - count)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._console.is_terminal:
            self._console.print(Text(line))
        else:  # rich would replace what the terminal's encoding lacks, or wrap
            print(line.encode(errors="backslashreplace").decode(), file=sys.stderr, flush=True)
