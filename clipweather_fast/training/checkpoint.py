"""Checkpoints of a run: whole files only, the newest few, and the last good one always loads."""

from __future__ import annotations

import fcntl
import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from clipweather_fast.restore.aside import written_aside

__all__ = ["Checkpoints", "occupied"]

_NAME = re.compile(r"step-(\d{9})\.pt")


class Checkpoints:
    """The folder of a run's checkpoints, ``step-000001234.pt``.

    A checkpoint is written aside, brought to the disk and then named, and older ones are removed
    after that: whatever interrupts it (a signal, a power cut, a full disk), the ones before are
    still there. Files hold tensors and plain values only and are read with ``weights_only=True``.

    Args:
        folder: made when the first checkpoint is written.
        keep: how many stay.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self.keep = folder, keep

    def save(self, step: int, content: Mapping[str, Any]) -> Path:
        """Writes the checkpoint of a step and removes the oldest.

        Raises:
            OSError: if it cannot be written; nothing is removed then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"step-{step:09}.pt"
        # In memory first: the archive's writer aborts the process when a disk is full.
        buffer = BytesIO()
        torch.save(dict(content), buffer)
        with written_aside(path) as file:
            file.write(buffer.getbuffer())
            file.flush()
            os.fsync(file.fileno())
        _synchronise(self.folder)
        for old in self.paths()[: -self.keep]:
            if old != path:
                old.unlink(missing_ok=True)
        return path

    def paths(self) -> list[Path]:
        """The checkpoints, the oldest first."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _NAME.fullmatch(path.name))

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that is whole, or None if there is no checkpoint at all.

        A damaged one is passed over with a warning.

        Raises:
            ValueError: if there are checkpoints and every one is damaged.
        """
        damaged: list[str] = []
        for path in reversed(self.paths()):
            try:
                return path, _read(path)
            except (OSError, ValueError) as error:
                damaged.append(f"{path}: {error}")
                warnings.warn(f"checkpoint {path} is damaged: {error}", stacklevel=2)
        if damaged:
            raise ValueError(
                "every checkpoint is damaged; move them away to begin anew\n" + "\n".join(damaged)
            )
        return None


def _read(path: Path) -> dict[str, Any]:
    """A checkpoint's content. ``ValueError`` if a byte of it is not what was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            wrong = archive.testzip()  # reads everything and compares the check sums
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from error
    if wrong is not None:
        raise ValueError(f"the check sum of {wrong} is wrong")
    # Whatever the reader says of a file that is not what was written, the file is at fault.
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        words = str(error).strip().splitlines()
        raise ValueError(words[0] if words else type(error).__name__) from error
    if not isinstance(content, dict):
        raise ValueError("it holds no named values")
    return content


@contextmanager
def occupied(folder: Path) -> Iterator[None]:
    """The folder as one process's own. The system ends this with the process, however it ends.

    Raises:
        ValueError: if another process has it.
    """
    handle = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            # A record lock: processes that read pictures do not inherit it, nor keep it.
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise ValueError(f"another process trains in {folder}") from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(handle)


def _synchronise(folder: Path) -> None:
    """Brings a folder's names to the disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
