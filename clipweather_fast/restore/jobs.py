"""What is to be restored and where it goes: files, folders and patterns become a list of jobs.

Everything that can go wrong with names alone is found here, before anything is computed or written.
"""

from __future__ import annotations

import errno
import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from clipweather_fast.restore.images import SUFFIXES

__all__ = ["PICTURE_SUFFIXES", "InputError", "Job", "OutputError", "pictures", "plan", "shard"]

#: Endings that count as pictures inside a folder; a file that is named itself is always tried.
PICTURE_SUFFIXES = frozenset(SUFFIXES)


class InputError(ValueError):
    """An input does not exist, or holds no picture."""


class OutputError(ValueError):
    """The outputs cannot all be written where they would go."""


@dataclass(frozen=True)
class Job:
    """One picture to restore.

    Attributes:
        source: the picture as it is.
        target: the restored picture.
        compare: where the input and the output go side by side, or None.
    """

    source: Path
    target: Path
    compare: Path | None = None


@dataclass(frozen=True)
class _Found:
    """A picture, its place below the output folder, and whether it was named itself."""

    path: Path
    place: Path
    named: bool


def plan(
    inputs: Sequence[str],
    output: Path,
    *,
    suffix: str = "",
    extension: str = "auto",
    compare: bool = False,
    overwrite_inputs: bool = False,
    skip_existing: bool = False,
) -> list[Job]:
    """The jobs for these inputs, in an order that depends on the names alone.

    Folders are searched to the bottom, through symbolic links too, each real folder once; hidden
    files and the output folder are left out, and so are pictures that an earlier run wrote there.
    The layout below an input folder, or below the fixed part of a pattern, is kept.

    Args:
        inputs: files, folders and patterns (``*``, ``?``, ``[...]``, ``**``).
        output: a folder, which need not exist, or for a single picture the file to write.
        suffix: put between the name and its extension.
        extension: "auto" keeps each picture's own, otherwise e.g. "png".
        compare: also plan a side-by-side picture, ``<name>_compare`` beside the target.
        overwrite_inputs: allow a target that is an input.
        skip_existing: targets that are there will be left alone. A picture that was found in a
            folder and lies where another's result goes then counts as that result.

    Raises:
        InputError: an input does not exist, or there is no picture in it.
        OutputError: two inputs would write the same file, an input would be overwritten, or
            ``output`` is a file where a folder is needed.
    """
    if os.sep in suffix or "\0" in suffix:
        raise OutputError(f"the suffix must be part of a file name, got {suffix!r}")
    found = [picture for name in inputs for picture in _found(name, output)]
    if not found:
        raise InputError("no input was given")
    jobs = [
        (_job(picture, output / _named(picture.place, suffix, extension), compare), picture.named)
        for picture in found
    ]
    if _is_file_name(output):
        if len({_real(picture.path) for picture in found}) > 1:
            raise OutputError(f"{output} names one picture, but there are {len(found)}")
        jobs = [(_job(found[0], output, compare), True)]
    elif os.path.exists(output) and not os.path.isdir(output):
        raise OutputError(f"{output} is a file; {len(found)} pictures need a folder")
    if skip_existing:
        jobs = _without_results(jobs)
    return _checked(jobs, overwrite_inputs)


def pictures(inputs: Sequence[str]) -> list[Path]:
    """The pictures that these inputs name, found as by :func:`plan`, each once.

    Raises:
        InputError: an input does not exist, or there is no picture in it.
    """
    nowhere = Path(os.devnull)
    found = (picture.path for name in inputs for picture in _found(name, nowhere))
    return list(dict.fromkeys(found))


def shard(jobs: Sequence[Job], index: int, count: int) -> list[Job]:
    """Every ``count``-th job from number ``index`` on: the share of one machine of ``count``.

    The jobs are counted before any is skipped, so that machines that start later agree.
    """
    if not 1 <= index <= count:
        raise ValueError(f"a shard is i/n with 1 <= i <= n, got {index}/{count}")
    return list(jobs[index - 1 :: count])


# ---- finding -------------------------------------------------------------------------------------


def _found(name: str, output: Path) -> Iterator[_Found]:
    path = Path(name)  # os.path's questions have an answer for what may not be looked at, too
    if os.path.isdir(path):
        pictures = list(_pictures_below(path, output))
        if not pictures:
            raise InputError(f"no picture in the folder {name}")
        yield from (_Found(picture, picture.relative_to(path), False) for picture in pictures)
    elif os.path.exists(path):
        yield _Found(path, Path(path.name), True)
    elif os.path.islink(path):
        raise InputError(f"{name} is a symbolic link to nothing, or to itself")
    elif glob.has_magic(name):
        yield from _matching(path, output)
    else:
        raise InputError(_why_not_there(name))


def _why_not_there(name: str) -> str:
    try:
        os.stat(name)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            return f"{name}: {error.strerror}"
    return f"{name} does not exist"


def _matching(pattern: Path, output: Path) -> Iterator[_Found]:
    """The pictures that a pattern names, placed relative to the part of it that is fixed."""
    fixed = pattern.parent
    # A folder that is there is itself, also if its name looks like a pattern.
    while glob.has_magic(str(fixed)) and not os.path.isdir(fixed):
        fixed = fixed.parent
    parts = pattern.relative_to(fixed).parts
    if ".." in parts:
        raise InputError(f"{pattern} goes up after a wildcard: where would its pictures go?")
    if "**" in parts:  # glob would follow links in circles
        below = _pictures_below(fixed, output) if os.path.isdir(fixed) else iter(())
        paths = [path for path in below if _fits(path.relative_to(fixed).parts, parts)]
    else:
        written = os.path.realpath(output)
        names = map(Path, sorted(glob.iglob(os.path.join(glob.escape(str(fixed)), *parts))))
        paths = [p for p in names if _is_picture(p) and os.path.realpath(p.parent) != written]
    if not paths:
        raise InputError(f"no picture matches {pattern}")
    yield from (_Found(path, path.relative_to(fixed), False) for path in paths)


def _fits(names: Sequence[str], parts: Sequence[str]) -> bool:
    """Whether a path's names fit a pattern's parts, in which ``**`` stands for any folders."""
    if not parts:
        return not names
    if parts[0] == "**":
        return _fits(names, parts[1:]) or (bool(names) and _fits(names[1:], parts))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _fits(names[1:], parts[1:])


def _pictures_below(folder: Path, output: Path) -> Iterator[Path]:
    """The pictures in a folder and below, sorted; links to folders come after the real ones.

    A folder that cannot be read is among them, so that it is reported like a bad picture.
    """
    written = os.path.realpath(output)
    # With output = input the pictures there are told apart from results by their names, later.
    entered = {written} - {os.path.realpath(folder)}
    closed: list[Path] = []
    waiting = [folder]
    while waiting:
        links: list[Path] = []
        for start in waiting:
            for place, folders, names in os.walk(
                start, onerror=lambda error: closed.append(Path(error.filename))
            ):
                here, real = Path(place), os.path.realpath(place)
                if real in entered:
                    folders.clear()
                    continue
                entered.add(real)
                folders[:] = sorted(name for name in folders if not name.startswith("."))
                links += [here / name for name in folders if os.path.islink(here / name)]
                yield from (here / name for name in sorted(names) if _is_picture(here / name))
        waiting = links
    yield from closed


def _is_picture(path: Path) -> bool:
    """By its name; whether it can be read shows when it is."""
    hidden = path.name.startswith(".")
    return not hidden and path.suffix.lower() in PICTURE_SUFFIXES and not os.path.isdir(path)


# ---- naming --------------------------------------------------------------------------------------


def _is_file_name(output: Path) -> bool:
    return not os.path.isdir(output) and output.suffix.lower() in PICTURE_SUFFIXES


def _named(place: Path, suffix: str, extension: str) -> Path:
    ending = place.suffix if extension == "auto" else f".{extension.lstrip('.')}"
    return place.with_name(f"{place.stem}{suffix}{ending}")


def _job(picture: _Found, target: Path, compare: bool) -> Job:
    beside = target.with_name(f"{target.stem}_compare{target.suffix}") if compare else None
    return Job(picture.path, target, beside)


def _without_results(jobs: Sequence[tuple[Job, bool]]) -> list[tuple[Job, bool]]:
    """The jobs less those whose source, found in a folder, is where another one's result goes."""
    results: dict[Path, set[Path]] = {}
    for job, _ in jobs:
        for target in filter(None, (job.target, job.compare)):
            results.setdefault(_place(target), set()).add(_real(job.source))
    return [
        (job, named)
        for job, named in jobs
        if named or not results.get(_real(job.source), set()) - {_real(job.source)}
    ]


def _checked(jobs: Sequence[tuple[Job, bool]], overwrite_inputs: bool) -> list[Job]:
    """The jobs without repetitions and without results of an earlier run."""
    owners: dict[Path, Job] = {}
    for job, _ in jobs:
        for target in filter(None, (job.target, job.compare)):
            other = owners.setdefault(_place(target), job)
            if _real(other.source) != _real(job.source):
                raise OutputError(
                    f"{other.source} and {job.source} would both write {target}; give them "
                    "different outputs, or keep their extensions with --ext auto; if one is a "
                    "result of the other, --skip-existing leaves it alone"
                )
    kept: dict[Path, Job] = {}
    for job, named in jobs:
        owner = owners.get(_real(job.source))
        result = owner is not None and _real(owner.source) != _real(job.source)
        if named or not result:  # a result of another input that was found in a folder is left out
            kept.setdefault(_place(job.target), job)
    sources = {_real(job.source): job.source for job in kept.values()}
    for job in kept.values() if not overwrite_inputs else ():
        for target in filter(None, (job.target, job.compare)):
            if _place(target) in sources:
                raise OutputError(
                    f"{job.source} would overwrite the input {sources[_place(target)]}; choose "
                    "another folder or a --suffix, or allow it with --overwrite-inputs"
                )
    return list(kept.values())


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _place(target: Path) -> Path:
    """The file that writing ``target`` replaces: links in its folders are followed, itself not."""
    return _real(target.parent) / target.name
