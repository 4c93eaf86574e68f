"""Whether a dataset is whole, readable and free of its own test pictures."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from clipweather_fast.data.collection import Collection
from clipweather_fast.data.contents import Content, contents
from clipweather_fast.data.find import collect
from clipweather_fast.data.leakage import repeated_pictures, shared_pictures, shared_scenes
from clipweather_fast.data.pair import Pair, Problem
from clipweather_fast.data.published import compare_counts

__all__ = ["DatasetReport", "check"]


@dataclass(frozen=True)
class DatasetReport:
    """What a check found.

    Attributes:
        roots: the folders and lists checked.
        layouts: the layouts they have.
        pairs: the pairs that are complete.
        files: how many files were read.
        decoded: whether pixels were decoded, or only headers read.
        counts: pairs by split and weather.
        published: pictures of the published datasets by split.
        problems: what is wrong, fatal ones first.
    """

    roots: tuple[str, ...]
    layouts: tuple[str, ...]
    pairs: int
    files: int
    decoded: bool
    counts: dict[str, dict[str, int]]
    published: dict[str, dict[str, int]]
    problems: tuple[Problem, ...]

    @property
    def good(self) -> bool:
        """No problem is fatal."""
        return not any(problem.fatal for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """For ``json.dumps``."""
        return {"good": self.good, **asdict(self)}


def check(
    roots: Sequence[str | os.PathLike[str]],
    layout: str = "auto",
    *,
    decode: bool = True,
    counts: bool = True,
    workers: int | None = None,
    begin: Callable[[int], None] = lambda files: None,
    progress: Callable[[], None] = lambda: None,
) -> DatasetReport:
    """Checks datasets together: their pairs, their files, and what they share.

    Fatal: pairs whose partner is missing, lines that cannot be understood, files that cannot be
    decoded, pictures and truths of different sizes, fewer pictures of a published dataset than any
    published selection has, Outdoor-Rain scenes or pictures with equal pixels in two splits,
    Outdoor-Rain scenes of Test1 in training. Not fatal: truths without a picture, repeated pairs
    and pictures, pictures equal to their truth, pictures of unknown weather, other counts.

    Args:
        roots: folders or lists; train and test may be in one or in two. Of several, one whose
            names speak of no split is a split of its own.
        layout: "auto" or one of ``LAYOUTS``.
        decode: False reads only headers: fast, but sees neither damage nor equal pictures.
        counts: compare with the published counts.
        workers: threads; None: one per processor.
        begin: called once with the number of files to be read.
        progress: called after each file.

    Raises:
        DatasetError: a root does not exist, or is no list.
    """
    collections = [collect(root, layout) for root in roots]
    pairs = _pairs(roots, collections)
    problems = [problem for found in collections for problem in found.problems]
    for found in collections:
        problems += [
            Problem("unused", str(found.folder.path(place)), "no picture has this truth", False)
            for place in found.unused
        ]
    if not pairs:
        problems.append(Problem("empty", ", ".join(map(str, roots)), "no complete pair"))
    files = list(dict.fromkeys(path for pair in pairs for path in (pair.image, pair.truth)))
    begin(len(files))
    known = contents(files, decode, workers, progress)
    problems += _bad_files(pairs, known)
    published, differences = compare_counts(pairs)
    problems += differences if counts else []
    problems += [*shared_scenes(pairs), *shared_pictures(pairs, known)]
    problems += repeated_pictures(pairs, known)
    if unknown := sum(pair.weather is None for pair in pairs):
        words = f"{unknown:,} pictures of which no name says the weather"
        problems.append(Problem("weather", ", ".join(map(str, roots)), words, False))
    return DatasetReport(
        roots=tuple(map(str, roots)),
        layouts=tuple(dict.fromkeys(name for found in collections for name in found.layouts)),
        pairs=len(pairs),
        files=len(files),
        decoded=decode,
        counts=_counts(pairs),
        published=published,
        problems=tuple(sorted(problems, key=lambda problem: not problem.fatal)),
    )


def _pairs(
    roots: Sequence[str | os.PathLike[str]], collections: Sequence[Collection]
) -> list[Pair]:
    """The pairs of all roots, each once."""
    pairs: dict[Pair, None] = {}
    for root, found in zip(roots, collections, strict=True):
        for pair in found.pairs:
            alone = pair.split is None and len(roots) > 1
            pairs[replace(pair, split=os.fspath(root)) if alone else pair] = None
    return list(pairs)


def _bad_files(pairs: Sequence[Pair], known: dict[Any, Content]) -> list[Problem]:
    """Files that cannot be read, and pairs of two sizes."""
    bad = [
        Problem("unreadable", str(path), content.error)
        for path, content in known.items()
        if content.error
    ]
    for pair in pairs:
        image, truth = known[pair.image], known[pair.truth]
        if image.error or truth.error:
            continue
        if (image.height, image.width) != (truth.height, truth.width):
            words = (
                f"{image.width} x {image.height} pixels, but its truth {pair.truth} has "
                f"{truth.width} x {truth.height}"
            )
            bad.append(Problem("sizes", str(pair.image), words))
    return sorted(bad, key=lambda problem: (problem.kind, problem.place))


def _counts(pairs: Sequence[Pair]) -> dict[str, dict[str, int]]:
    """Pairs by split and weather."""
    counts: dict[str, dict[str, int]] = {}
    found = Counter((pair.split or "no split", pair.weather or "unknown") for pair in pairs)
    for (split, weather), count in sorted(found.items()):
        counts.setdefault(split, {})[weather] = count
    return counts
