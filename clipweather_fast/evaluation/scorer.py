"""What is done with one picture: read, restore, score, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipweather_fast.evaluation.cases import Case
from clipweather_fast.evaluation.metrics import Score, score
from clipweather_fast.evaluation.records import Record
from clipweather_fast.restore.images import read_picture, write_picture
from clipweather_fast.restore.picture import Picture, PictureError
from clipweather_fast.restore.pipeline import in_words

__all__ = ["Loaded", "Scorer"]


@dataclass(frozen=True)
class Loaded:
    """A case's pictures in memory.

    Attributes:
        case: the case.
        image: the degraded picture, if there is one.
        restored: the restored picture, once it is there.
        truth: the clear picture.
        tile: side of the tiles in which it was restored.
        seconds: what restoring took.
    """

    case: Case
    image: Picture | None
    restored: Picture | None
    truth: Picture
    tile: int | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Scorer:
    """The steps from a case to its record. A step that fails raises; :meth:`failed` says it.

    Attributes:
        restorer: gives a picture restored; None: all cases have restored pictures.
        protocols: names.
        save: a folder for restored pictures, and where in it each case's goes.
    """

    restorer: Callable[[Picture], Picture] | None
    protocols: Sequence[str]
    save: tuple[Path, dict[str, Path]] | None = None

    def read(self, case: Case) -> Loaded:
        """Decodes the files. Sizes are compared here, before time is spent on restoring."""
        if case.problem is not None:
            raise ValueError(case.problem)
        if case.truth is None:
            raise ValueError("there is no truth")
        image, restored, truth = (
            None if path is None else _colours(read_picture(path))
            for path in (case.image, case.restored, case.truth)
        )
        assert truth is not None
        for picture, path in ((image, case.image), (restored, case.restored)):
            if picture is not None and (picture.width, picture.height) != (
                truth.width,
                truth.height,
            ):
                raise ValueError(
                    f"{path} has {picture.width} x {picture.height} pixels and its truth "
                    f"{case.truth} {truth.width} x {truth.height}; none is resized to be compared"
                )
        return Loaded(case, image, restored, truth)

    def restore(self, loaded: Loaded) -> Loaded:
        """Restores the picture unless that has been done."""
        if loaded.restored is not None:
            return loaded
        if self.restorer is None or loaded.image is None:
            raise ValueError("there is no restored picture")
        began = time.perf_counter()
        restored = self.restorer(loaded.image)
        seconds = time.perf_counter() - began
        report = getattr(self.restorer, "report", None)
        tile = getattr(report, "tile", None)
        return replace(loaded, restored=restored, tile=tile, seconds=round(seconds, 4))

    def finish(self, loaded: Loaded) -> Record:
        """Scores, and saves the restored picture: the very samples that were scored."""
        case, truth, restored = loaded.case, loaded.truth, loaded.restored
        assert restored is not None
        before: dict[str, Score] = {}
        if loaded.image is not None:
            before = score(loaded.image, truth, self.protocols)
        scores = score(restored, truth, self.protocols)
        if self.save is not None:
            folder, places = self.save
            target = folder / places[case.name]
            target.parent.mkdir(parents=True, exist_ok=True)
            write_picture(restored, target)
        return Record(
            case.name,
            case.weather,
            None,
            truth.width,
            truth.height,
            loaded.tile,
            loaded.seconds,
            scores,
            before,
        )

    def whole(self, case: Case) -> Record:
        """All steps."""
        try:
            return self.finish(self.restore(self.read(case)))
        except Exception as error:  # a bad picture must not stop the rest
            return self.failed(case, error)

    def failed(self, case: Case, error: Exception) -> Record:
        """The record of a case that could not be scored."""
        return Record(case.name, case.weather, _words(case, error))


def _colours(picture: Picture) -> Picture:
    """The picture as one that PNG holds sample for sample: no palette, no inks, no thresholds."""
    mode: Any = "RGB" if picture.pixels.shape[2] == 3 else "L"
    return replace(picture, mode=mode, inks=None, format="PNG", encoding={})


def _words(case: Case, error: Exception) -> str:
    if isinstance(error, PictureError):
        return str(error)  # which of the case's files it is
    return in_words(error, case.image or case.restored or Path(case.name))
