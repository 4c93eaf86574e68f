"""Pairs and problems, as the readers of the layouts find them."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field

from clipweather_fast.data.folder import Folder
from clipweather_fast.data.pair import Pair, Problem
from clipweather_fast.data.weathers import WEATHERS, split_in, weather_in, weather_of_picture

__all__ = ["Collection"]


@dataclass
class Collection:
    """What has been found below a dataset's folder.

    Attributes:
        folder: the dataset's folder.
        pairs: in the order found, each once.
        problems: what is wrong, in the order found.
        unused: truths that no picture asks for.
        layouts: the layouts that were read.
    """

    folder: Folder
    pairs: list[Pair] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    layouts: list[str] = field(default_factory=list)
    _seen: dict[tuple[str, str], str] = field(default_factory=dict)

    def wrong(self, kind: str, place: str, words: str, fatal: bool = True) -> None:
        """Keeps a problem of a place in the folder."""
        self.problems.append(Problem(kind, str(self.folder.path(place)), words, fatal))

    def add(
        self, image: str, truth: str, weather: str | None, origin: str, listed_in: str = ""
    ) -> None:
        """Keeps a pair, once.

        Args:
            image, truth: places in the folder.
            weather: what the list says beside the path; None: names decide.
            origin: where the pair is described, for messages.
            listed_in: the list's name without its ending.
        """
        first = self._seen.setdefault((image, truth), origin)
        if first != origin:
            words = f"the pair of {image} stands in {self.folder.path(first)} too"
            self.wrong("repeated", origin, words, fatal=False)
            return
        places = posixpath.dirname(image).split("/")
        self.pairs.append(
            Pair(
                self.folder.path(image),
                self.folder.path(truth),
                weather or self._weather(image, places, listed_in),
                self._split(places, listed_in),
                str(self.folder.path(origin)),
            )
        )

    def weather_word(self, word: str, origin: str) -> str | None:
        """The weather that a list states; what is none is a problem."""
        weather = weather_in(word)
        if weather is None:
            self.wrong("weather", origin, f"{word!r} is none of {', '.join(WEATHERS)}")
        return weather

    def _weather(self, image: str, places: list[str], listed_in: str) -> str | None:
        """From the nearest folder that names one; the list; the picture; the dataset's folder."""
        for name in (*reversed(places), listed_in):
            if (weather := weather_in(name)) is not None:
                return weather
        stem = posixpath.splitext(posixpath.basename(image))[0]
        if (weather := weather_of_picture(stem)) is not None:
            return weather
        own, above = self.folder.names
        # Of a folder called train the name above it speaks.
        for name in (own, above) if split_in(own) else (own,):
            if (weather := weather_in(name)) is not None:
                return weather
        # In TransWeather's folder of all weathers only Snow100K's pictures bear no mark.
        mixed = any("allweather" in name.lower() for name in (*places, listed_in, own))
        return "snow" if mixed else None

    def _split(self, places: list[str], listed_in: str) -> str | None:
        """From the outermost folder that names one; the list; the dataset's folder."""
        names = (*places, listed_in, self.folder.names[0])
        for name in names:
            if (split := split_in(name)) is not None:
                return split
        # TransWeather's folder of all weathers is for training.
        return "train" if any("allweather" in name.lower() for name in names) else None
