"""Lists in JSON: one object per line, or one array of [truth, image]."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterator
from typing import Any

from clipweather_fast.data.collection import Collection
from clipweather_fast.data.lists import lines_of, stated

__all__ = ["is_jsonl", "is_tkl", "read_jsonl", "read_tkl"]

_TKL = re.compile(r'\s*\[\s*\[\s*"')
_SPACE = re.compile(r"[\s,]*")


def is_jsonl(collection: Collection, place: str) -> bool:
    """Whether a file's first line is an object with "lq" and "gt"."""
    for _, text in lines_of(collection, place):
        try:
            record = json.loads(text)
        except (RecursionError, ValueError):
            return False
        return isinstance(record, dict) and {"lq", "gt"} <= set(record)
    return False


def read_jsonl(collection: Collection, place: str) -> None:
    """Reads ``{"lq": "a.png", "gt": "b.png", "weather": "snow"}`` from each line.

    Paths are relative to the file's folder, or else to the dataset's. "weather" may be missing or
    null; other keys are passed over.
    """
    for origin, text in lines_of(collection, place):
        try:
            record = json.loads(text)
        except (RecursionError, ValueError) as error:
            collection.wrong("line", origin, f"is not JSON: {error}")
            continue
        if not isinstance(record, dict):
            collection.wrong("line", origin, f"expected an object, got {text[:80]!r}")
            continue
        image, truth, weather = (record.get(key) for key in ("lq", "gt", "weather"))
        if not (isinstance(image, str) and isinstance(truth, str)):
            words = f'expected "lq" and "gt" with a path each, got {text[:80]!r}'
            collection.wrong("line", origin, words)
        elif not (weather is None or isinstance(weather, str)):
            collection.wrong("weather", origin, f'"weather" must be a word, got {weather!r}')
        else:
            _add(collection, (image, truth), weather, place, origin)


def is_tkl(collection: Collection, place: str) -> bool:
    """Whether a file begins as an array of arrays of text."""
    path = collection.folder.path(place)
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        return _TKL.match(file.read(4096)) is not None


def read_tkl(collection: Collection, place: str) -> None:
    """Reads ``[["gt/a.png", "input/a.png"], ...]``, the truth first.

    Paths are relative to the file's folder, or else to the dataset's.
    """
    for origin, entry in _entries(collection, place):
        if (
            isinstance(entry, list)
            and len(entry) == 2
            and all(isinstance(path, str) for path in entry)
        ):
            _add(collection, (entry[1], entry[0]), None, place, origin)
        else:
            words = f"expected [truth, image], got {json.dumps(entry)[:80]}"
            collection.wrong("line", origin, words)


def _entries(collection: Collection, place: str) -> Iterator[tuple[str, Any]]:
    """The elements of an array in a JSON file, each after its origin, ``file:line``."""
    path = collection.folder.path(place)
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    decoder = json.JSONDecoder()
    at = len(text) - len(text.lstrip())
    line = 1 + text.count("\n", 0, at)
    if not text.startswith("[", at):
        collection.wrong("line", f"{place}:{line}", "expected an array of [truth, image]")
        return
    before, at = at, at + 1
    while True:
        space = _SPACE.match(text, at)
        at = space.end() if space else at
        line, before = line + text.count("\n", before, at), at
        if text.startswith("]", at):
            return
        try:
            entry, at = decoder.raw_decode(text, at)
        except (RecursionError, ValueError) as error:
            collection.wrong("line", f"{place}:{line}", f"is not JSON: {error}")
            return
        yield f"{place}:{line}", entry


def _add(
    collection: Collection, paths: tuple[str, str], weather: str | None, place: str, origin: str
) -> None:
    image = stated(collection, paths[0], place, origin)
    truth = stated(collection, paths[1], place, origin, "truth ")
    if weather is not None and not (weather := collection.weather_word(weather, origin)):
        return
    if image and truth:
        stem = posixpath.splitext(posixpath.basename(place))[0]
        collection.add(image, truth, weather, origin, stem)
