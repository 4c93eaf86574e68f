"""An evaluation's results: means by weather, a CSV file by picture, a JSON summary."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from clipweather_fast.clip.text import WEATHERS
from clipweather_fast.evaluation.protocols import PROTOCOLS
from clipweather_fast.evaluation.records import Record, finite_or_name
from clipweather_fast.restore.aside import written_aside

__all__ = ["Evaluation", "Means"]

#: The last row of a table: the mean over pictures, whatever the weather.
ALL = "all pictures"
#: The mean of the weathers' means, in which each counts the same: the mean of the field's tables.
EACH = "mean of weathers"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class Means:
    """Means over pictures under one protocol.

    Attributes:
        protocol: its name.
        pictures: how many were scored.
        identical: how many of them equal the truth, so that their PSNR is infinite.
        psnr: the mean over the others; infinity if there are no others.
        ssim: the mean over all.
        input_psnr: the same of the degraded pictures; None if those are unknown.
        input_ssim: the same.
        input_identical: how many degraded pictures equal the truth: clean ones.
        gain: mean of the decibels gained, over the pictures where both are finite.
    """

    protocol: str
    pictures: int
    identical: int
    psnr: float
    ssim: float
    input_psnr: float | None = None
    input_ssim: float | None = None
    input_identical: int | None = None
    gain: float | None = None


@dataclass(frozen=True)
class Evaluation:
    """The results of an evaluation.

    Attributes:
        records: of the pictures, in their order; those that failed among them.
        protocols: the names of the protocols.
        settings: what the figures depend on.
        missing: pictures without a record: other shards, or an interruption.
    """

    records: Sequence[Record]
    protocols: Sequence[str]
    settings: Mapping[str, Any] = field(default_factory=dict)
    missing: int = 0

    @property
    def failed(self) -> list[Record]:
        """The pictures without scores."""
        return [record for record in self.records if record.error is not None]

    @property
    def scored(self) -> list[Record]:
        """The pictures with scores."""
        return [record for record in self.records if record.error is None]

    def means(self, protocol: str) -> dict[str, Means]:
        """Means by weather, and over all pictures; empty if nothing was scored."""
        groups: dict[str, list[Record]] = {}
        for record in self.scored:
            groups.setdefault(record.weather or UNKNOWN, []).append(record)
        order = [*WEATHERS, *sorted(groups.keys() - {*WEATHERS, UNKNOWN}), UNKNOWN]
        found = {w: _means(groups[w], protocol) for w in order if w in groups}
        if len(found) > 1:
            found[EACH] = _of_groups(list(found.values()))
        if groups:
            found[ALL] = _means(self.scored, protocol)
        return found

    def worst(self, protocol: str, count: int, best: bool = False) -> list[Record]:
        """The pictures of the lowest (or highest) PSNR under a protocol, the extreme one first."""
        ranked = sorted(self.scored, key=lambda record: record.scores[protocol].psnr)
        return ranked[::-1][:count] if best else ranked[:count]

    def summary(self) -> dict[str, Any]:
        """All that is known of the whole, ready for JSON; infinity is the text "inf"."""
        means = {
            protocol: {group: _plain(m) for group, m in self.means(protocol).items()}
            for protocol in self.protocols
        }
        tiles = [record.tile for record in self.scored if record.tile is not None]
        return {
            "settings": dict(self.settings),
            "protocols": {p: asdict(PROTOCOLS[p]) for p in self.protocols},
            "pictures": len(self.records) + self.missing,
            "scored": len(self.scored),
            "failed": [{"name": r.name, "error": r.error} for r in self.failed],
            "missing": self.missing,
            "restored_in_tiles": len(tiles),
            "means": means,
        }

    def write(self, folder: Path) -> None:
        """Writes ``pictures.csv`` and ``summary.json``, each whole or not at all."""
        with written_aside(folder / "pictures.csv") as file:
            file.write(self.table().encode(errors="surrogateescape"))
        with written_aside(folder / "summary.json") as file:
            file.write(json.dumps(self.summary(), indent=1, allow_nan=False).encode() + b"\n")

    def table(self) -> str:
        """A line of CSV per picture; every column of figures carries its protocol's name."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        figures = ("psnr", "ssim", "input_psnr", "input_ssim", "gain")
        columns = [f"{figure}_{p}" for p in self.protocols for figure in figures]
        writer.writerow(["name", "weather", "width", "height", "tile", *columns, "error"])
        for record in self.records:
            cells: list[Any] = [record.name, record.weather, record.width, record.height]
            cells.append(record.tile)
            for protocol in self.protocols:
                for scores in (record.scores, record.before):
                    score = scores.get(protocol)
                    cells += [None, None] if score is None else [score.psnr, score.ssim]
                cells.append(record.gain(protocol))
            writer.writerow([*cells, record.error])
        return text.getvalue()


def _means(records: Iterable[Record], protocol: str) -> Means:
    records = list(records)
    scores = [record.scores[protocol] for record in records]
    before = [record.before[protocol] for record in records if protocol in record.before]
    gains = [gain for record in records if (gain := record.gain(protocol)) is not None]
    whole = len(before) == len(records)
    return Means(
        protocol,
        len(scores),
        sum(score.psnr == math.inf for score in scores),
        _mean_psnr([score.psnr for score in scores]),
        _mean([score.ssim for score in scores]),
        _mean_psnr([score.psnr for score in before]) if whole else None,
        _mean([score.ssim for score in before]) if whole else None,
        sum(score.psnr == math.inf for score in before) if whole else None,
        _mean(gains) if whole and gains else None,
    )


def _of_groups(groups: Sequence[Means]) -> Means:
    """Every group counts the same, however many pictures it has."""

    def over(name: str, mean: Callable[[Sequence[float]], float]) -> Any:
        values = [getattr(group, name) for group in groups]
        return None if None in values else mean(values)

    return Means(
        groups[0].protocol,
        sum(group.pictures for group in groups),
        sum(group.identical for group in groups),
        _mean_psnr([group.psnr for group in groups]),
        _mean([group.ssim for group in groups]),
        over("input_psnr", _mean_psnr),
        over("input_ssim", _mean),
        over("input_identical", sum),
        over("gain", _mean),
    )


def _mean_psnr(values: Sequence[float]) -> float:
    """The mean of those that are finite; infinity if all pictures are identical."""
    finite = [value for value in values if value != math.inf]
    return _mean(finite) if finite else math.inf


def _mean(values: Sequence[float]) -> float:
    # fsum: the same whatever the order, so any split over processes gives the same bits.
    return math.fsum(values) / len(values)


def _plain(means: Means) -> dict[str, Any]:
    plain = asdict(means)
    del plain["protocol"]
    return {k: finite_or_name(v) if isinstance(v, float) else v for k, v in plain.items()}
