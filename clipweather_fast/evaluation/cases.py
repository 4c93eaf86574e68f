"""What is to be scored: pictures with their truths, from a dataset or from two folders."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipweather_fast.restore.jobs import PICTURE_SUFFIXES, pictures

if TYPE_CHECKING:
    from clipweather_fast.data import Pair

__all__ = [
    "Case",
    "cases_of_dataset",
    "cases_of_folders",
    "cases_of_pairs",
    "saved_places",
    "share",
    "with_restored",
]


@dataclass(frozen=True)
class Case:
    """A picture to score.

    Attributes:
        name: its place in the dataset, with slashes; no two cases have the same.
        truth: the scene in clear weather; None: there is no such file.
        image: the degraded picture; None: unknown, so there is no gain to state.
        restored: the restored picture; None: to be computed from ``image``.
        weather: for the table; None: unknown.
        problem: why it cannot be scored, such as a partner that is missing.
    """

    name: str
    truth: Path | None
    image: Path | None = None
    restored: Path | None = None
    weather: str | None = None
    problem: str | None = None

    @property
    def sizes(self) -> list[int | None]:
        """Bytes of the three files, to notice that one was replaced; None: there is none."""
        return [_size(path) for path in (self.image, self.restored, self.truth)]


def cases_of_dataset(
    root: Path, *, layout: str = "auto", split: str | None = None, weather: str | None = None
) -> list[Case]:
    """Cases to restore and score: the pairs of a dataset, and what is wrong with others.

    Args:
        root: a folder, or one list file.
        layout: as for :func:`clipweather_fast.data.find_pairs`.
        split: only this one.
        weather: stated for all.

    Raises:
        DatasetError: there are no pairs, or several splits and none is stated.
        ValueError: an argument outside its range.
    """
    from clipweather_fast.data import find_pairs
    from clipweather_fast.data.find import collect
    from clipweather_fast.data.weathers import split_in

    pairs = find_pairs(root, layout, split=split, weather=weather, strict=False)
    folder = root if root.is_dir() else root.parent
    cases = {case.name: case for case in cases_of_pairs(pairs, folder)}
    for problem in collect(root, layout).problems:
        place = _place(Path(problem.place), folder)
        splits = {split_in(part) for part in Path(place).parts} - {None}
        if problem.fatal and (split is None or split in splits or not splits):
            cases.setdefault(place, Case(place, None, problem=problem.words))
    return list(cases.values())


def cases_of_pairs(pairs: Iterable[Pair], root: Path | None = None) -> list[Case]:
    """Cases to restore and score, one for each picture of a dataset.

    Args:
        pairs: the dataset.
        root: names are relative to it; None: to the deepest folder that holds all pictures.

    Raises:
        ValueError: a picture appears twice, with different truths.
    """
    pairs = list(dict.fromkeys(pairs))
    if root is None and pairs:
        root = Path(os.path.commonpath([os.path.abspath(pair.image.parent) for pair in pairs]))
    cases: dict[str, Case] = {}
    for pair in pairs:
        name = _place(pair.image, root)
        case = Case(name, pair.truth, pair.image, None, pair.weather)
        other = cases.setdefault(name, case)
        if (other.truth, other.image) != (case.truth, case.image):
            raise ValueError(
                f"{pair.image} appears with two truths, {other.truth} and {case.truth}; "
                "`clipweather data check` shows where"
            )
    return list(cases.values())


def cases_of_folders(restored: Path, truth: Path, images: Path | None = None) -> list[Case]:
    """Cases that are restored already: a folder of results and a folder of truths.

    Partners have the same place below their folders and the same name, or the same name but for the
    ending (``a.png``, ``a.jpg``). Two files are a case by themselves.

    Args:
        restored: a folder, searched to the bottom, or a picture.
        truth: the same.
        images: the degraded pictures, for the gain.

    Raises:
        InputError: a folder is missing, or there is no picture in it.
    """
    if restored.is_file() and truth.is_file():
        return [Case(restored.name, truth, images, restored)]
    truths, degraded = _Folder(truth), None if images is None else _Folder(images)
    cases, used = [], set()
    for path in pictures([str(restored)]):
        name = _place(path, restored)
        partner, problem = truths.partner(name, "truth")
        used.add(partner)
        image = None
        if degraded is not None:
            image, missing = degraded.partner(name, "degraded picture")
            problem = problem or missing
        weather = _weather(restored.resolve().name, name)
        cases.append(Case(name, partner, image, path, weather, problem))
    left = [path for path in truths.by_name.values() if path not in used]
    for path in left:
        name = _place(path, truth)
        words = f"the truth has no partner in {restored}"
        cases.append(Case(f"truth/{name}", path, weather=None, problem=words))
    return cases


def with_restored(cases: Sequence[Case], folder: Path) -> list[Case]:
    """The cases with restored pictures from a folder, such as ``--save`` writes.

    A picture is looked for at the place of the case's name below the folder: as a PNG file, with
    its own or another ending, or with ``.png`` behind the whole name.
    """
    found = []
    for case in cases:
        stem = Path(case.name)
        tried = [stem.with_suffix(".png"), stem, *map(stem.with_suffix, sorted(PICTURE_SUFFIXES))]
        # Of two inputs a.jpg and a.png the restored pictures carry their whole names.
        tried.insert(0, Path(f"{case.name}.png"))
        path = next((folder / t for t in tried if (folder / t).is_file()), None)
        problem = case.problem
        if path is None and problem is None:
            problem = f"there is no restored picture {folder / tried[1]}"
        found.append(replace(case, restored=path, problem=problem))
    return found


def saved_places(cases: Sequence[Case]) -> dict[str, Path]:
    """Where the restored picture of each case goes below a folder: its name as a PNG file."""
    usual = {case.name: Path(case.name).with_suffix(".png") for case in cases}
    wanted = Counter(usual.values())
    return {
        name: place if wanted[place] == 1 else Path(f"{name}.png") for name, place in usual.items()
    }


def share(cases: Sequence[Case], index: int, count: int) -> list[Case]:
    """Every ``count``-th case from number ``index`` on, for one process or machine of ``count``."""
    if not 1 <= index <= count:
        raise ValueError(f"a shard is i/n with 1 <= i <= n, got {index}/{count}")
    return list(cases[index - 1 :: count])


class _Folder:
    """The pictures of a folder, by their place and by their place without the ending."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.by_name = {_place(path, folder): path for path in pictures([str(folder)])}
        self.by_stem: dict[str, list[Path]] = {}
        for name, path in self.by_name.items():
            self.by_stem.setdefault(_stem(name), []).append(path)

    def partner(self, name: str, what: str) -> tuple[Path | None, str | None]:
        """The picture for a name, or what is wrong."""
        if name in self.by_name:
            return self.by_name[name], None
        found = self.by_stem.get(_stem(name), [])
        if len(found) == 1:
            return found[0], None
        if found:
            names = ", ".join(path.name for path in found)
            return None, f"several pictures could be its {what}: {names} in {found[0].parent}"
        return None, f"there is no {what} of this name in {self.folder}"


def _stem(name: str) -> str:
    return str(Path(name).with_suffix(""))


def _place(path: Path, root: Path | None) -> str:
    """A path relative to a folder; of one outside, its parts without the way up."""
    path = Path(os.path.abspath(path))
    if root is not None:
        base = Path(os.path.abspath(root))
        if path.is_relative_to(base):
            path = path.relative_to(base)
    return Path(*path.parts[1:]).as_posix() if path.is_absolute() else path.as_posix()


def _weather(folder: str, name: str) -> str | None:
    """The weather that the folders above a picture or its name speak of, the nearest first."""
    from clipweather_fast.data.weathers import weather_in, weather_of_picture

    parents = [*reversed(Path(name).parts[:-1]), folder]
    found = (weather_in(parent) for parent in parents)
    return next((w for w in found if w is not None), None) or weather_of_picture(Path(name).stem)


def _size(path: Path | None) -> int | None:
    try:
        return None if path is None else path.stat().st_size
    except OSError:
        return None
