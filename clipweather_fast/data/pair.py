"""A degraded picture with its truth, and what can be wrong with the description of many."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from clipweather_fast.data.weathers import WEATHERS

__all__ = ["DatasetError", "Pair", "Problem"]


@dataclass(frozen=True)
class Pair:
    """A degraded picture and the same scene in clear weather.

    Attributes:
        image: the degraded picture.
        truth: the clear one; several pictures may share it.
        weather: one of ``WEATHERS``, or None if nothing says it.
        split: "train", "val" or "test", from folder or list names; None if they do not say.
        origin: where the pair was read, ``list.txt:17`` or a folder, for messages.
    """

    image: Path
    truth: Path
    weather: str | None = None
    split: str | None = None
    origin: str = ""

    @property
    def label(self) -> int:
        """The weather's class, its place in ``WEATHERS``; -1 if it is unknown."""
        return -1 if self.weather is None else WEATHERS.index(self.weather)


@dataclass(frozen=True)
class Problem:
    """Something wrong with a dataset.

    Attributes:
        kind: one word for it, such as "missing" or "outside"; the report counts by it.
        place: the file, the file and line, or the folder.
        words: what was expected, what is there and the way out.
        fatal: False if training can go on all the same.
    """

    kind: str
    place: str
    words: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{self.place}: {self.words}"


class DatasetError(ValueError):
    """A dataset that cannot be used as it is. The message begins with the file, or file and line.

    Attributes:
        problems: what is wrong; the message is the first of them and the number of the others.
    """

    def __init__(self, *problems: Problem) -> None:
        super().__init__(*problems)
        self.problems = problems

    def __str__(self) -> str:
        others = len(self.problems) - 1
        more = "s" if others > 1 else ""
        tail = f" ({others} more problem{more}; `clipweather data check` lists all)"
        return f"{self.problems[0]}{tail if others else ''}"

    @classmethod
    def at(cls, place: str | os.PathLike[str], words: str, kind: str = "unusable") -> DatasetError:
        """An error with a single problem."""
        return cls(Problem(kind, str(place), words))
