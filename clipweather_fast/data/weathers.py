"""The weathers and splits that names of folders, lists and files speak of."""

from __future__ import annotations

import re
from functools import lru_cache

from clipweather_fast.clip.text import WEATHERS

__all__ = [
    "OUTDOOR_RAIN",
    "RAINDROP",
    "WEATHERS",
    "split_in",
    "weather_in",
    "weather_of_picture",
]

#: What a word of a folder's name begins with. "rain" includes haze; Test1 is Outdoor-Rain's.
_BEGINNINGS = {
    "snow": ("snow",),
    "raindrop": ("raindrop",),
    "rain": ("rain", "haz", "fog", "test1", "streak"),
}
#: Pictures of Outdoor-Rain (scene, streaks, haze) and of RainDrop, told by their file names.
OUTDOOR_RAIN = re.compile(r"im_(\d+)_s\d+_a\d+")
RAINDROP = re.compile(r"\d+_rain(?![a-z])")
_SPLIT = re.compile(r"(train|val|test)(?:ing|id|idation|set)?\d*")


def _words(name: str) -> list[str]:
    """The words of a name, lower case: ``RainDrop_testA`` is rain, drop, test, a."""
    apart = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    return re.findall(r"[a-z0-9]+", apart.lower())


@lru_cache(maxsize=4096)  # every picture of a folder asks the same
def weather_in(name: str) -> str | None:
    """The weather that the name of a folder or a list, or a word beside a path, stands for.

    None if it names no weather or several: ``Snow100K-L`` is snow, ``RainDrop`` and ``rain_drops``
    raindrop, ``Outdoor-Rain`` and ``haze`` rain; ``train`` and ``allweather`` are none.
    """
    words = " ".join(_words(name))
    words = re.sub(r"\brain drop", "raindrop", words)
    found = set()
    for word in words.split():
        for weather, beginnings in _BEGINNINGS.items():
            if word.startswith(beginnings):
                found.add(weather)
                break  # raindrop comes before rain
    return found.pop() if len(found) == 1 else None


def weather_of_picture(stem: str) -> str | None:
    """The weather that a picture's file name shows: ``im_0301_s80_a04`` rain, ``7_rain`` raindrop.

    Snow100K's names have no such mark.
    """
    if OUTDOOR_RAIN.match(stem):
        return "rain"
    if RAINDROP.match(stem):
        return "raindrop"
    return None


@lru_cache(maxsize=4096)
def split_in(name: str) -> str | None:
    """The split that the name of a folder or a list speaks of: "train", "val", "test" or None.

    ``test_a``, ``test1`` and ``Snow100K-testset`` are test; a name that speaks of two is none.
    """
    found = {match[1] for word in _words(name) if (match := _SPLIT.fullmatch(word))}
    return found.pop() if len(found) == 1 else None
