"""TransWeather's lists: text files with the path of one degraded picture in each line."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator

from clipweather_fast.data.collection import Collection
from clipweather_fast.data.folder import DEGRADED, Ambiguous, Outside
from clipweather_fast.restore.images import SUFFIXES

__all__ = ["is_list", "lines_of", "read_list", "stated"]

_ENDINGS = "|".join(re.escape(ending) for ending in SUFFIXES)
#: A path, which may hold spaces, and perhaps the weather.
_LINE = re.compile(rf"(?P<path>.*(?:{_ENDINGS}))(?:[\s,;]+(?P<weather>[^\s,;]+))?", re.I)


def lines_of(collection: Collection, place: str) -> Iterator[tuple[str, str]]:
    """The lines of a text file that say something, each after its origin, ``file:line``."""
    # Names may be in any encoding: they pass through as the file system gives them.
    with open(
        collection.folder.path(place), encoding="utf-8-sig", errors="surrogateescape"
    ) as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if text and not text.startswith("#"):
                yield f"{place}:{number}", text


def is_list(collection: Collection, place: str) -> bool:
    """Whether a text file's first line is a path through a folder of degraded pictures."""
    for _, text in lines_of(collection, place):
        match = _LINE.fullmatch(text[:4096])
        parts = match["path"].replace("\\", "/").split("/")[:-1] if match else []
        return any(part in DEGRADED for part in parts)
    return False


def read_list(collection: Collection, place: str) -> None:
    """Reads a list: ``./allweather/input/a b.png``, or with a second column ``... snow``.

    Paths are relative to the list's folder, or else to the dataset's. The truth is in the folder
    that has ``gt`` where the path has its last ``input``.
    """
    for origin, text in lines_of(collection, place):
        match = _LINE.fullmatch(text)
        if match is None:
            collection.wrong(
                "line",
                origin,
                "expected the path of a picture, and after it perhaps the weather, got "
                f"{text[:80]!r}",
            )
            continue
        weather = None
        if match["weather"] and not (weather := collection.weather_word(match["weather"], origin)):
            continue
        image = stated(collection, match["path"], place, origin)
        if image is None:
            continue
        folder, name = posixpath.split(image)
        if not set(folder.split("/")) & set(DEGRADED):
            collection.wrong(
                "line", origin, f"{image} has no folder called {DEGRADED[0]} that gt could replace"
            )
            continue
        truths = collection.folder.truth_folder(folder)
        try:
            truth = truths and collection.folder.truth_of(name, truths)
        except Ambiguous as error:
            collection.wrong("ambiguous", origin, f"the truth of {image}: {error}")
            continue
        if truth:
            stem = posixpath.splitext(posixpath.basename(place))[0]
            collection.add(image, truth, weather, origin, stem)
        else:
            where = f"in {truths}" if truths else "since there is no folder gt beside its own"
            collection.wrong("missing", origin, f"{image} has no truth {where}")


def stated(
    collection: Collection, written: str, place: str, origin: str, what: str = ""
) -> str | None:
    """The file that a list states, as a place in the dataset; None and a problem without it."""
    folder = collection.folder
    try:
        near = folder.inside(written, posixpath.dirname(place))
        if folder.has(near):
            return near
        below_root = folder.inside(written, "")
    except Outside:
        root = folder.root
        words = f"{what}{written} is not in the dataset's folder {root}; give a path inside it"
        collection.wrong("outside", origin, words)
        return None
    if folder.has(below_root):
        return below_root
    collection.wrong("missing", origin, f"there is no {what}{folder.path(near)}")
    return None
