"""Finding the pairs of a dataset, in whatever of five layouts it comes."""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from clipweather_fast.data.collection import Collection
from clipweather_fast.data.folder import Folder, Outside
from clipweather_fast.data.folders import beside, read_basicsr, read_folders
from clipweather_fast.data.lists import is_list, read_list
from clipweather_fast.data.pair import DatasetError, Pair
from clipweather_fast.data.records import is_jsonl, is_tkl, read_jsonl, read_tkl
from clipweather_fast.data.weathers import WEATHERS

__all__ = ["LAYOUTS", "collect", "find_pairs"]

#: The layouts by name, in the order in which they are looked for.
LAYOUTS = ("jsonl", "tkl", "basicsr", "list", "folders")


class _Listing(NamedTuple):
    """A kind of file that lists pairs."""

    ending: str
    is_one: Callable[[Collection, str], bool]
    read: Callable[[Collection, str], None]


_LISTINGS = {
    "jsonl": _Listing(".jsonl", is_jsonl, read_jsonl),
    "tkl": _Listing(".json", is_tkl, read_tkl),
    "list": _Listing(".txt", is_list, read_list),
}


class _Statement(NamedTuple):
    """What the caller states of a layout."""

    layout: str
    degraded: str | None
    truth: str | None
    template: str
    meta_info: str | None


def find_pairs(
    root: str | os.PathLike[str],
    layout: str = "auto",
    *,
    split: str | None = None,
    weather: str | None = None,
    strict: bool = True,
    degraded: str | None = None,
    truth: str | None = None,
    template: str = "{}",
    meta_info: str | None = None,
) -> list[Pair]:
    """The pairs of a dataset: of a folder, or of one list.

    Layouts, told apart by themselves or stated:

    - ``"list"``: TransWeather's. Text files of paths such as ``./allweather/input/a b.png``, after
      which the weather may stand; the truth is in ``gt`` instead of the last ``input``.
    - ``"basicsr"``: two folders (``dataroot_lq``, ``dataroot_gt``), a template for names and
      perhaps a ``meta_info`` file of the truths' names.
    - ``"folders"``: ``<weather>/input`` (or ``LQ``, ``lq``; RainDrop's, Snow100K's and
      Outdoor-Rain's own ``data``, ``synthetic``, ``in``) beside ``<weather>/gt`` (or ``GT``).
    - ``"tkl"``: JSON, ``[[truth, image], ...]``.
    - ``"jsonl"``: lines of ``{"lq": ..., "gt": ..., "weather": "snow"}``.

    A list describes everything below the folder that it lies in; where there is none, folders are
    looked for, to the bottom. The weather is what stands beside the path, or what the nearest
    folder's name says, the list's name, the picture's name, or the dataset's. Paths are relative to
    the list, or else to ``root``, with ``/`` or ``\\``, and may not leave ``root``.

    Args:
        root: the dataset's folder, or one list file (then its folder is the dataset's).
        layout: "auto" or one of ``LAYOUTS``.
        split: "train", "val" or "test": only pictures whose folder or list has such a name.
        weather: stated for all pairs, whatever names say.
        strict: False leaves out what has a problem. Default: it is an error.
        degraded, truth: the two folders of layout "basicsr", relative to ``root``; stated for
            "folders" they are the only ones read.
        template: ``filename_tmpl`` of BasicSR: the degraded picture's name, ``{}`` the truth's.
        meta_info: file of BasicSR, relative to ``root``.

    Returns:
        The pairs, each once, in an order that depends on names and lists alone.

    Raises:
        DatasetError: there are no pairs, a list or a picture has a problem (the message names file
            and line), or there are several splits and none is stated.
        ValueError: an argument outside its range.
    """
    if weather is not None and weather not in WEATHERS:
        raise ValueError(f"find_pairs: weather must be one of {WEATHERS}, got {weather!r}")
    collection = collect(
        root,
        layout,
        degraded=degraded,
        truth=truth,
        template=template,
        meta_info=meta_info,
    )
    fatal = [problem for problem in collection.problems if problem.fatal]
    if fatal and strict:
        raise DatasetError(*fatal)
    pairs = collection.pairs
    if not pairs:
        raise DatasetError.at(
            root,
            "holds no pairs: expected a list (.txt, .json, .jsonl) or folders such as snow/input "
            "and snow/gt",
            "empty",
        )
    splits = sorted({pair.split for pair in pairs if pair.split is not None})
    if split is None and len(splits) > 1:
        words = f"holds {' and '.join(splits)} pictures; state split={splits[0]!r}, or its folder"
        raise DatasetError.at(root, words, "splits")
    if split is not None:
        pairs = [pair for pair in pairs if pair.split == split]
        if not pairs:
            known = ", ".join(splits) or "none"
            raise DatasetError.at(root, f"has no split {split!r}; there is {known}", "splits")
    return pairs if weather is None else [replace(pair, weather=weather) for pair in pairs]


def collect(
    root: str | os.PathLike[str],
    layout: str = "auto",
    *,
    degraded: str | None = None,
    truth: str | None = None,
    template: str = "{}",
    meta_info: str | None = None,
) -> Collection:
    """The pairs of all splits, and all that is wrong; see :func:`find_pairs`.

    Raises:
        DatasetError: there is no such folder or file.
        ValueError: an argument outside its range.
    """
    if layout != "auto" and layout not in LAYOUTS:
        raise ValueError(f"layout must be auto, {', '.join(LAYOUTS)}; got {layout!r}")
    if (degraded is None) != (truth is None) or (meta_info is not None and truth is None):
        raise ValueError("degraded and truth are stated together, and meta_info only with them")
    if sorted(re.findall(r"[{}]", template)) != ["{", "}"] or "{}" not in template:
        raise ValueError(f"template must have {{}} once and no other braces, got {template!r}")
    statement = _Statement(layout, degraded, truth, template, meta_info)
    path = Path(root)
    try:
        if path.is_file():
            collection = Collection(Folder(path.parent))
            _read_file(collection, path.name, statement)
        elif path.is_dir():
            collection = Collection(Folder(path))
            if degraded is None:
                _visit(collection, "", statement, set())
            else:
                _read_stated(collection, statement)
        else:
            raise DatasetError.at(path, "there is no such folder or file", "missing")
    except OSError as error:
        raise DatasetError.at(error.filename, str(error.strerror), "unreadable") from error
    return collection


def _read_file(collection: Collection, place: str, statement: _Statement) -> None:
    """A list that the caller names."""
    ending = posixpath.splitext(place)[1].lower()
    for name, listing in _LISTINGS.items():
        if statement.layout == name or (statement.layout == "auto" and ending == listing.ending):
            listing.read(collection, place)
            collection.layouts.append(name)
            return
    endings = ", ".join(listing.ending for listing in _LISTINGS.values())
    words = f"is no list: expected a folder or a file that ends in {endings}"
    raise DatasetError.at(collection.folder.path(place), words)


def _read_stated(collection: Collection, statement: _Statement) -> None:
    """Two folders that the caller names."""
    folder = collection.folder
    degraded, truth = (_stated_place(folder, name or "") for name in statement[1:3])
    meta_info = statement.meta_info and _stated_place(folder, statement.meta_info)
    for place in (degraded, truth):
        if not folder.path(place).is_dir():
            raise DatasetError.at(folder.path(place), "there is no such folder", "missing")
    if statement.layout == "folders":
        read_folders(collection, degraded, truth)
        collection.layouts.append("folders")
    else:
        read_basicsr(collection, degraded, truth, statement.template, meta_info)
        collection.layouts.append("basicsr")


def _stated_place(folder: Folder, name: str) -> str:
    try:
        return folder.inside(name, "")
    except Outside as error:
        words = f"is not in the dataset's folder {folder.root}; let root be what holds both"
        raise DatasetError.at(name, words, "outside") from error


def _visit(collection: Collection, place: str, statement: _Statement, seen: set[str]) -> None:
    """A folder, and the folders in it unless a list speaks for them."""
    folder = collection.folder
    real = os.path.realpath(folder.path(place))
    if real in seen:
        return  # a link in a circle
    seen.add(real)
    if _read_lists(collection, place, statement):
        return
    couple = beside(collection, place)
    if couple and statement.layout in ("auto", "folders"):
        read_folders(collection, *couple)
        collection.layouts.append("folders")
    for name in folder.folders(place):
        below = posixpath.join(place, name)
        if not (couple and below in couple):
            _visit(collection, below, statement, seen)


def _read_lists(collection: Collection, place: str, statement: _Statement) -> bool:
    """Reads the lists in a folder, of the first kind that is there."""
    names = sorted(collection.folder.files(place))
    kinds = LAYOUTS[:-1] if statement.layout == "auto" else (statement.layout,)
    for kind in kinds:
        if kind == "basicsr":
            if _read_pair_of_roots(collection, place, names, statement):
                return True
            continue
        listing = _LISTINGS.get(kind)
        if listing is None:
            continue
        lists = [posixpath.join(place, name) for name in names if name.endswith(listing.ending)]
        lists = [each for each in lists if listing.is_one(collection, each)]
        for each in lists:
            listing.read(collection, each)
        if lists:
            collection.layouts.append(kind)
            return True
    return False


def _read_pair_of_roots(
    collection: Collection, place: str, names: list[str], statement: _Statement
) -> bool:
    """BasicSR's folders beside each other; by themselves only a meta_info file tells them."""
    couple = beside(collection, place)
    if couple is None:
        return False
    metas: list[str | None] = [
        posixpath.join(place, name)
        for name in names
        if name.startswith("meta_info") and name.endswith(".txt")
    ]
    if statement.layout == "auto" and statement.template == "{}" and not metas:
        return False
    for meta in metas or [None]:
        read_basicsr(collection, *couple, statement.template, meta)
    collection.layouts.append("basicsr")
    return True
