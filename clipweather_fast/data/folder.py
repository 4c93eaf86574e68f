"""A dataset's folder: what is in it, and no way out of it."""

from __future__ import annotations

import os
import posixpath
import re
from functools import cached_property
from pathlib import Path

from clipweather_fast.restore.images import SUFFIXES

__all__ = ["DEGRADED", "TRUTHS", "Ambiguous", "Folder", "Outside", "is_picture"]

#: Folders of degraded pictures, and of their truths beside them.
USUAL = ("input", "LQ", "lq")
#: With the names that RainDrop, Snow100K and Outdoor-Rain give theirs.
DEGRADED = (*USUAL, "data", "synthetic", "in")
TRUTHS = ("gt", "GT")


class Outside(ValueError):
    """A path that leads out of the dataset's folder."""


class Ambiguous(ValueError):
    """Several files could be a picture's truth."""


def is_picture(name: str) -> bool:
    """By the name's ending; hidden files are none."""
    return not name.startswith(".") and posixpath.splitext(name)[1].lower() in SUFFIXES


class Folder:
    """The root of a dataset. Paths in it are relative, with ``/``, and every folder is read once.

    Args:
        root: the folder. Symbolic links inside it are followed wherever they lead: who set up the
            folder wants them. What lists say, though, may not leave it by ``..`` or from the root
            of the file system.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._files: dict[str, frozenset[str]] = {}
        self._folders: dict[str, list[str]] = {}
        self._stems: dict[str, dict[str, list[str]]] = {}

    @cached_property
    def names(self) -> tuple[str, str]:
        """The root's own name and its parent's."""
        path = Path(os.path.abspath(self.root))
        return path.name, path.parent.name

    def path(self, place: str) -> Path:
        """The file on disk."""
        return self.root / place

    def inside(self, written: str, near: str) -> str:
        r"""A path from a list, as a place in this folder.

        Args:
            written: relative, or absolute and below the root; ``\`` counts as ``/``.
            near: the folder that it is relative to.

        Raises:
            Outside: it leaves the root.
        """
        text = written.replace("\\", "/")
        if re.match(r"[A-Za-z]:/", text) or "\0" in text:
            raise Outside(written)
        if text.startswith("/"):
            text = os.path.relpath(text, os.path.abspath(self.root)).replace(os.sep, "/")
            near = ""
        place = posixpath.normpath(posixpath.join(near, text))
        if place in (".", "..") or place.startswith("../"):
            raise Outside(written)
        return place

    def files(self, place: str) -> frozenset[str]:
        """Names of the files in a folder that are not hidden; none if there is no such folder."""
        self._read(place)
        return self._files[place]

    def folders(self, place: str) -> list[str]:
        """Names of the folders in a folder that are not hidden, sorted."""
        self._read(place)
        return self._folders[place]

    def has(self, place: str) -> bool:
        """Whether there is such a file."""
        parent, name = posixpath.split(place)
        return name in self.files(parent)

    def truth_of(self, image: str, folder: str) -> str | None:
        """The truth of a picture among the files of a folder, or None.

        It has the picture's name; or the same without the ending; or ``7_clean`` for ``7_rain``
        (RainDrop); or what is left of the name when parts are taken from its end at underscores,
        as ``im_0301`` for ``im_0301_s80_a04`` (Outdoor-Rain): several pictures share one truth.

        Raises:
            Ambiguous: several files have that name with different endings.
        """
        name = posixpath.basename(image)
        if name in self.files(folder):
            return posixpath.join(folder, name)
        stem = posixpath.splitext(name)[0]
        wanted = [stem]
        if match := re.fullmatch(r"(\d+)_rain(.*)", stem):
            wanted.append(f"{match[1]}_clean{match[2]}")
        wanted += [stem[: mark.start()] for mark in reversed(list(re.finditer("_", stem)))]
        stems = self._by_stem(folder)
        for candidate in wanted:
            found = stems.get(candidate, [])
            if len(found) > 1:
                raise Ambiguous(f"{candidate} has the endings {', '.join(sorted(found))}")
            if found:
                return posixpath.join(folder, candidate + found[0])
        return None

    def truth_folder(self, folder: str) -> str | None:
        """The folder of truths that belongs to a folder of degraded pictures.

        Its last part that is called ``input`` (or else another of ``DEGRADED``) becomes one of
        ``TRUTHS``. None: it has no such part, or there is no such folder.
        """
        parts = folder.split("/")
        usual = [number for number, part in enumerate(parts) if part in USUAL]
        named = usual or [number for number, part in enumerate(parts) if part in DEGRADED]
        for truth in TRUTHS if named else ():
            place = "/".join([*parts[: named[-1]], truth, *parts[named[-1] + 1 :]])
            if self.files(place):
                return place
        return None

    def _by_stem(self, folder: str) -> dict[str, list[str]]:
        """The endings of a folder's pictures by their names without them."""
        if folder not in self._stems:
            stems: dict[str, list[str]] = {}
            for name in self.files(folder):
                if is_picture(name):
                    stem, ending = posixpath.splitext(name)
                    stems.setdefault(stem, []).append(ending)
            self._stems[folder] = stems
        return self._stems[folder]

    def _read(self, place: str) -> None:
        if place in self._files:
            return
        files: list[str] = []
        folders: list[str] = []
        try:
            with os.scandir(self.root / place) as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    (folders if _is_folder(entry) else files).append(entry.name)
        except OSError:  # what is said to be in it will be missing, and is named then
            pass
        self._files[place] = frozenset(files)
        self._folders[place] = sorted(folders)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle
        return False
