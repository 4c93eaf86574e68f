"""Layouts without a list of pairs: folders of pictures and of truths, side by side."""

from __future__ import annotations

import os
import posixpath
import re

from clipweather_fast.data.collection import Collection
from clipweather_fast.data.folder import DEGRADED, TRUTHS, Ambiguous, is_picture
from clipweather_fast.data.lists import lines_of
from clipweather_fast.restore.images import SUFFIXES

__all__ = ["beside", "read_basicsr", "read_folders"]

_ENDINGS = "|".join(re.escape(ending) for ending in SUFFIXES)
#: A truth's name, which may hold spaces, and what meta_info files say of it: ``(480,480,3)``.
_META = re.compile(rf"(?P<name>.*?(?:{_ENDINGS}))(?:\s.*)?", re.I)


def beside(collection: Collection, place: str) -> tuple[str, str] | None:
    """The folders of degraded pictures and of truths in a folder, if it has both."""
    names = collection.folder.folders(place)
    degraded = next((name for name in DEGRADED if name in names), None)
    truth = next((name for name in TRUTHS if name in names), None)
    if degraded is None or truth is None:
        return None
    return posixpath.join(place, degraded), posixpath.join(place, truth)


def read_folders(
    collection: Collection, degraded: str, truths: str, above: frozenset[str] = frozenset()
) -> None:
    """Reads a folder of degraded pictures; each has its truth in the other folder.

    See :meth:`Folder.truth_of` for their names. Folders in it are read likewise; ``above`` are
    those that it is in itself, so that links in a circle end.
    """
    folder = collection.folder
    real = os.path.realpath(folder.path(degraded))
    if real in above:
        return
    used = set()
    for name in sorted(filter(is_picture, folder.files(degraded))):
        image = posixpath.join(degraded, name)
        try:
            truth = folder.truth_of(name, truths)
        except Ambiguous as error:
            collection.wrong("ambiguous", image, f"its truth in {truths}: {error}")
            continue
        if truth is None:
            collection.wrong("missing", image, f"has no truth in {folder.path(truths)}")
            continue
        used.add(posixpath.basename(truth))
        collection.add(image, truth, None, degraded)
    left = sorted(name for name in folder.files(truths) - used if is_picture(name))
    collection.unused += [posixpath.join(truths, name) for name in left]
    for name in folder.folders(degraded):
        below = posixpath.join(degraded, name), posixpath.join(truths, name)
        read_folders(collection, *below, above | {real})


def read_basicsr(
    collection: Collection, degraded: str, truths: str, template: str, meta_info: str | None
) -> None:
    """Reads BasicSR's pairs: the degraded picture is called as the template makes of the truth.

    Args:
        degraded, truths: places of ``dataroot_lq`` and ``dataroot_gt``.
        template: ``filename_tmpl``, with ``{}`` for the truth's name without its ending; the ending
            is the truth's, or else the only one there is.
        meta_info: place of a file with the name of one truth in each line; None: all truths.
    """
    folder = collection.folder
    names = (
        [(truths, name) for name in sorted(filter(is_picture, folder.files(truths)))]
        if meta_info is None
        else _truths_of(collection, meta_info)
    )
    stems: dict[str, list[str]] = {}
    for name in filter(is_picture, folder.files(degraded)):
        stems.setdefault(posixpath.splitext(name)[0], []).append(name)
    for origin, name in names:
        truth = posixpath.join(truths, name)
        if not folder.has(truth):
            collection.wrong("missing", origin, f"there is no truth {folder.path(truth)}")
            continue
        stem, ending = posixpath.splitext(name)
        wanted = template.format(stem)
        found = stems.get(wanted, [])
        exact = wanted + ending
        if exact not in found and len(found) != 1:
            kind = "ambiguous" if found else "missing"
            words = f"has {len(found)} degraded pictures {exact} in {folder.path(degraded)}"
            collection.wrong(kind, origin, f"{name} {words}")
            continue
        image = exact if exact in found else found[0]
        collection.add(posixpath.join(degraded, image), truth, None, origin)


def _truths_of(collection: Collection, meta_info: str) -> list[tuple[str, str]]:
    """Origin and name of every truth in a meta_info file."""
    found = []
    for origin, text in lines_of(collection, meta_info):
        match = _META.fullmatch(text)
        if match is None:
            words = f"expected the name of a truth, got {text[:80]!r}"
            collection.wrong("line", origin, words)
        else:
            # BasicSR drops folders here as well.
            found.append((origin, posixpath.basename(match["name"].replace("\\", "/"))))
    return found
