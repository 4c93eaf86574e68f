"""What has been found out of each picture, and the journal that outlives an interruption.

A journal is the one kind of file here that is appended to instead of written aside: a line per
picture, complete when its newline is there. A process that is killed leaves at most half a line,
which does not count.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from clipweather_fast.evaluation.cases import Case
from clipweather_fast.evaluation.metrics import Score

__all__ = ["Journal", "JournalError", "Record", "finite_or_name"]


class JournalError(ValueError):
    """A folder holds the journal of another evaluation, or one that cannot be read."""


@dataclass(frozen=True)
class Record:
    """What was found out of one picture.

    Attributes:
        name: of its case.
        weather: of its case.
        error: why it has no scores; else None.
        width: pixels.
        height: pixels.
        tile: side of the tiles it was restored in; None: whole, or restored elsewhere.
        seconds: what restoring it took.
        scores: of the restored picture, by protocol.
        before: of the degraded picture, by protocol; empty if there is none.
    """

    name: str
    weather: str | None = None
    error: str | None = None
    width: int = 0
    height: int = 0
    tile: int | None = None
    seconds: float = 0.0
    scores: Mapping[str, Score] = field(default_factory=dict)
    before: Mapping[str, Score] = field(default_factory=dict)

    def gain(self, protocol: str) -> float | None:
        """Decibels of PSNR that restoring gained; None if one of the two is infinite or unknown."""
        if protocol not in self.scores or protocol not in self.before:
            return None
        gained = self.scores[protocol].psnr - self.before[protocol].psnr
        return gained if math.isfinite(gained) else None

    def line(self, sizes: Sequence[int | None]) -> str:
        """The record as a line of a journal."""
        plain = vars(self) | {
            "scores": _plain(self.scores),
            "before": _plain(self.before),
            "sizes": list(sizes),
        }
        return json.dumps(plain, allow_nan=False, ensure_ascii=True) + "\n"

    @classmethod
    def of_line(cls, plain: dict[str, Any]) -> Record:
        """The record of a line that :meth:`line` made, without its sizes."""
        kept = {name: plain[name] for name in cls.__dataclass_fields__}
        return cls(**(kept | {name: _scores(kept[name]) for name in ("scores", "before")}))


def finite_or_name(number: float) -> float | str:
    """A number for JSON, which has no infinity: "inf", "-inf" and "nan" are text there."""
    return number if math.isfinite(number) else str(number)


class Journal:
    """The records of an evaluation in a folder, this run's and those of earlier and other ones.

    Every run appends to a file of its shard, ``scored-<i>-of-<n>.jsonl``, and reads those of all.

    Args:
        folder: where; it is made.
        settings: what the figures depend on. Records of other settings are not mixed in.
        shard: (i, n), which part this run does.
        restart: throw away what is there.

    Raises:
        JournalError: the folder holds records of other settings, or a line is no record.
        OSError: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        shard: tuple[int, int] = (1, 1),
        restart: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.settings = json.loads(json.dumps(dict(settings)))
        if restart:
            for path in self._files():
                path.unlink()
        self._lines: dict[str, dict[str, Any]] = {}
        for path in self._files():
            for line in self._read(path):
                other = self._lines.get(line["name"])
                # What failed in one run may have succeeded in another.
                if other is None or other["error"] is not None:
                    self._lines[line["name"]] = line
        self._path = folder / "scored-{}-of-{}.jsonl".format(*shard)
        self._file: BinaryIO | None = None

    def known(self, case: Case) -> Record | None:
        """The record of a case, if its files are of the sizes they had."""
        line = self._lines.get(case.name)
        if line is None or line["sizes"] != case.sizes:
            return None
        return Record.of_line(line)

    def append(self, record: Record, case: Case) -> None:
        """Remembers a record, now and for later runs."""
        line = record.line(case.sizes)
        self._lines[record.name] = json.loads(line)
        if self._file is None:
            self._file = self._opened()
        self._file.write(line.encode())
        self._file.flush()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("scored-*-of-*.jsonl"))

    def _opened(self) -> BinaryIO:
        """This shard's file, without the half line that a killed process left."""
        file = open(self._path, "ab")  # noqa: SIM115 - closed by __exit__
        whole = self._path.read_bytes()
        end = whole.rfind(b"\n") + 1
        if end < len(whole):
            os.truncate(self._path, end)
        if end == 0:
            file.write(json.dumps({"settings": self.settings}).encode() + b"\n")
        return file

    def _read(self, path: Path) -> Iterator[dict[str, Any]]:
        lines = path.read_bytes().split(b"\n")[:-1]  # what follows the last newline is half a line
        for number, line in enumerate(lines, 1):
            try:
                found = json.loads(line)
                if number == 1:
                    self._compare(found["settings"], path)
                    continue
                Record.of_line(found)
            except (AttributeError, KeyError, TypeError, ValueError) as error:
                if isinstance(error, JournalError):
                    raise
                raise JournalError(
                    f"{path}, line {number}: is no record of an evaluation; restart it"
                ) from error
            yield found

    def _compare(self, other: Mapping[str, Any], path: Path) -> None:
        names = sorted(other.keys() | self.settings.keys())
        differing = [n for n in names if other.get(n) != self.settings.get(n)]
        if differing:
            name = differing[0]
            raise JournalError(
                f"{path} was made with {name} = {other.get(name)!r}, this run has "
                f"{self.settings.get(name)!r}; figures of both would be mixed: take another "
                "folder, or restart the evaluation"
            )


def _plain(scores: Mapping[str, Score]) -> dict[str, list[float | str]]:
    return {n: [finite_or_name(s.psnr), finite_or_name(s.ssim)] for n, s in scores.items()}


def _scores(plain: Mapping[str, Sequence[float | str]]) -> dict[str, Score]:
    return {name: Score(name, float(psnr), float(ssim)) for name, (psnr, ssim) in plain.items()}
