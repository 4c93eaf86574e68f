"""Datasets of pairs from folders of photographs: ``<weather>/input`` and ``<weather>/gt``.

Every picture is a function of the settings and of its photograph's name and content, so a run that
was interrupted goes on where it was, and a photograph more or less changes no other picture.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

import clipweather_fast
from clipweather_fast.contact_sheet import contact_sheet
from clipweather_fast.data.synthesis.degrade import WEATHERS, degrade, parameters
from clipweather_fast.data.synthesis.random_numbers import key
from clipweather_fast.restore import Picture, PictureError, read_picture, write_picture
from clipweather_fast.restore.aside import written_aside
from clipweather_fast.restore.jobs import plan

__all__ = ["RECORD", "SHEET", "Report", "Settings", "write_dataset"]

#: File names beside the weathers' folders.
RECORD, SHEET = "synthesis.json", "contact_sheet.png"
#: Photographs on the contact sheet.
SHEET_ROWS = 8


@dataclass(frozen=True)
class Settings:
    """What decides about every pixel of a dataset.

    Attributes:
        seed: of all random choices.
        weathers: names of ``WEATHERS``.
        variations: pictures per photograph and weather.
        strength: of the weather, relative to what the seed draws.
        longest: photographs whose longer side has more pixels are averaged down; None: never.
    """

    seed: int = 0
    weathers: tuple[str, ...] = WEATHERS
    variations: int = 1
    strength: float = 1.0
    longest: int | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.weathers) - set(WEATHERS))
        if unknown or not self.weathers:
            raise ValueError(f"weathers must be some of {WEATHERS}, got {self.weathers}")
        if self.variations < 1:
            raise ValueError(f"variations must be at least 1, got {self.variations}")
        if not 0 <= self.strength <= 100:
            raise ValueError(f"strength must be from 0 to 100, got {self.strength}")
        if self.longest is not None and self.longest < 1:
            raise ValueError(f"longest must be at least 1, got {self.longest}")


@dataclass
class Report:
    """What became of a run.

    Attributes:
        written: pairs made now.
        kept: pairs that an earlier run made.
        failed: photographs that could not be read, with the reason.
        pictures: what the record says of each pair.
    """

    written: int = 0
    kept: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    pictures: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class _Pair:
    """One pair to be made of a photograph."""

    source: Path
    weather: str
    name: str
    variation: int

    def places(self, folder: Path) -> tuple[Path, Path]:
        """Of the input and of the truth."""
        return folder / self.weather / "input" / self.name, folder / self.weather / "gt" / self.name


def write_dataset(
    photographs: Sequence[str],
    folder: str | os.PathLike[str],
    settings: Settings | None = None,
    *,
    workers: int = 1,
    progress: Callable[[str | None], None] = lambda failure: None,
) -> Report:
    """Writes pairs of clean photographs and the same in bad weather.

    ``<weather>/gt`` holds the photographs as 8-bit RGB, ``<weather>/input`` what :func:`degrade`
    makes of them, under equal names; ``synthesis.json`` the settings and every picture's seed,
    parameters and PSNR; ``contact_sheet.png`` the first of them. Pairs that are there are kept.

    Args:
        photographs: files, folders and patterns.
        folder: where to write; made if it is not there.
        settings: None: the defaults.
        workers: threads, each with a picture of its own.
        progress: called after each photograph with None, or with what is wrong with it.

    Raises:
        ValueError: no photograph was found, two would have one name, or the folder holds a dataset
            of other settings or something else under its names.
        OSError: a file cannot be written.
    """
    settings = settings or Settings()
    folder = Path(folder)
    sources = _sources(photographs, folder)
    _claim(folder, settings)
    for weather in settings.weathers:
        for part in ("input", "gt"):
            (folder / weather / part).mkdir(parents=True, exist_ok=True)
    report = Report()
    found: dict[str, list[dict[str, Any]]] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        tasks = {
            pool.submit(_make, list(_pairs(path, name, settings)), folder, settings): name
            for name, path in sources.items()
        }
        for task in as_completed(tasks):
            name = tasks[task]
            try:
                found[name], written = task.result()
            except PictureError as error:
                report.failed[str(sources[name])] = error.words
                progress(str(error))
                continue
            report.written += written
            report.kept += len(found[name]) - written
            progress(None)
    finally:
        pool.shutdown(cancel_futures=True)
    report.pictures = [picture for name in sources if name in found for picture in found[name]]
    _write_record(folder, settings, report.pictures)
    _write_sheet(folder, settings, [name for name in sources if name in found])
    return report


# ---- names ---------------------------------------------------------------------------------------


def _sources(photographs: Sequence[str], folder: Path) -> dict[str, Path]:
    """Photographs by the names, without ending, that their pictures get."""
    found: dict[str, Path] = {}
    for job in plan(photographs, folder, extension="png"):
        place = job.target.relative_to(folder)
        name = "_".join(place.with_suffix("").parts)
        if name in found:
            raise ValueError(f"{found[name]} and {job.source} would both be called {name}.png")
        found[name] = job.source
    return found


def _pairs(source: Path, name: str, settings: Settings) -> Iterator[_Pair]:
    for weather in settings.weathers:
        for variation in range(settings.variations):
            ending = f"_{variation}" if settings.variations > 1 else ""
            yield _Pair(source, weather, f"{name}{ending}.png", variation)


def _claim(folder: Path, settings: Settings) -> None:
    """Makes the folder one of these settings, unless it belongs to others."""
    record = folder / RECORD
    stated = json.loads(json.dumps(asdict(settings)))
    if not record.exists():
        taken = [weather for weather in WEATHERS if (folder / weather).exists()]
        if taken:
            raise ValueError(f"{folder / taken[0]} is there, but no {RECORD}; choose a new folder")
        folder.mkdir(parents=True, exist_ok=True)
        _write_record(folder, settings, [])
        return
    try:
        there = json.loads(record.read_text())["settings"]
        different = [name for name in stated if there[name] != stated[name]]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{record} is not a record of a dataset; choose a new folder") from None
    if different:
        words = ", ".join(f"{n} {there[n]!r} instead of {stated[n]!r}" for n in different)
        raise ValueError(f"{folder} was written with {words}; choose a new folder")


# ---- pictures ------------------------------------------------------------------------------------


def _make(pairs: list[_Pair], folder: Path, settings: Settings) -> tuple[list[dict[str, Any]], int]:
    """What the record says of a photograph's pairs, and how many were made now."""
    entries = []
    written = 0
    clean: Tensor | None = None
    for pair in pairs:
        seed = key(settings.seed, pair.weather, Path(pair.name).stem, pair.variation)
        input, truth = pair.places(folder)
        there = _read_pair(input, truth)
        if there is None:
            clean = _photograph(pair.source, settings.longest) if clean is None else clean
            seen = degrade(clean, [pair.weather], [seed], strength=settings.strength)
            _write(clean, truth)
            _write(seen, input)  # last: a pair whose input is there is whole
            written += 1
            there = _levels(seen) / 255, clean
        error = float((there[0].double() - there[1].double()).square().mean())
        size = int(there[1].shape[2]), int(there[1].shape[3])
        drawn = parameters(pair.weather, seed, size, strength=settings.strength)
        entries.append(
            {
                "input": input.relative_to(folder).as_posix(),
                "gt": truth.relative_to(folder).as_posix(),
                "weather": pair.weather,
                "photograph": pair.source.name,
                "height": size[0],
                "width": size[1],
                "seed": seed,
                "psnr_rgb": round(-10 * math.log10(error), 3) if error > 0 else None,
                "parameters": asdict(drawn),
            }
        )
    return entries, written


def _read_pair(input: Path, truth: Path) -> tuple[Tensor, Tensor] | None:
    """The pictures of a pair that is there and whole."""
    if not (input.exists() and truth.exists()):
        return None
    try:
        seen, clean = _photograph(input, None), _photograph(truth, None)
    except PictureError:
        return None
    return (seen, clean) if seen.shape == clean.shape else None


def _photograph(path: Path, longest: int | None) -> Tensor:
    """A photograph (1, 3, H, W) in [0, 1], in steps of 1/255."""
    pixels = read_picture(path).pixels
    scale = np.float32(1 / np.iinfo(pixels.dtype).max)
    picture = torch.from_numpy(pixels.astype(np.float32) * scale).permute(2, 0, 1)
    picture = picture.expand(3, -1, -1)[None]
    height, width = picture.shape[2:]
    if longest is not None and max(height, width) > longest:
        ratio = longest / max(height, width)
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        picture = functional.interpolate(picture, size=size, mode="bicubic", antialias=True)
    return _levels(picture) / 255


def _levels(picture: Tensor) -> Tensor:
    return (picture * 255).round().clamp_(0, 255)


def _write(picture: Tensor, path: Path) -> None:
    levels = _levels(picture)[0].to(torch.uint8).permute(1, 2, 0).contiguous()
    write_picture(Picture(pixels=levels.numpy(), mode="RGB"), path)


# ---- what is beside the pictures -----------------------------------------------------------------


def _write_record(folder: Path, settings: Settings, pictures: list[dict[str, Any]]) -> None:
    record = {
        "clipweather_fast": clipweather_fast.__version__,
        "settings": asdict(settings),
        "pictures": pictures,
    }
    with written_aside(folder / RECORD) as file:
        file.write(json.dumps(record, indent=1).encode())
        file.write(b"\n")


def _write_sheet(folder: Path, settings: Settings, names: list[str]) -> None:
    rows = []
    for name in names[:SHEET_ROWS]:
        pairs = [p.places(folder) for p in _pairs(Path(name), name, settings) if p.variation == 0]
        shown = [pairs[0][1], *(input for input, _ in pairs)]
        rows.append([_photograph(path, None)[0] for path in shown])
    if rows:
        contact_sheet(rows, ["photograph", *settings.weathers], folder / SHEET)
