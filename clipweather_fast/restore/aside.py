"""Files that are there whole or not at all: written aside, then put in place."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

__all__ = ["written_aside"]

#: What a file system answers to O_TMPFILE when it has no files without a name.
_NO_NAMELESS_FILES = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOENT)


@contextmanager
def written_aside(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file to write and seek in, which appears at ``path`` when the block ends without an error.

    Until then whatever was at ``path`` stays. After an error, and after a signal that kills the
    process, nothing of the new file remains: on Linux it has no name while it is being written
    (``O_TMPFILE``). Where a file system has no such files it is called ``.<name>.<random>.part`` in
    the same folder, and only SIGKILL or a crash of the machine leaves that.

    Args:
        path: the file to write; its folder must exist. A symbolic link is replaced, not followed.

    Raises:
        OSError: the folder cannot be written to, ``path`` is a folder, or the disk is full; it
            names ``path``.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        descriptor, name = _opened(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    try:
        with open(descriptor, "w+b") as file:
            yield file
            file.flush()
            try:
                name = name or _named(descriptor, target)
                os.replace(name, target)
            except OSError as error:
                raise OSError(error.errno, error.strerror, str(target)) from error
            name = None
    finally:
        if name is not None:
            with suppress(OSError):
                os.unlink(name)


def _opened(target: Path) -> tuple[int, Path | None]:
    """A new file in the target's folder and its name, if it had to be given one."""
    nameless: int | None = getattr(os, "O_TMPFILE", None)
    if nameless is not None and os.path.isdir("/proc/self/fd"):
        try:
            return os.open(target.parent, nameless | os.O_RDWR | os.O_CLOEXEC, 0o666), None
        except OSError as error:
            if error.errno not in _NO_NAMELESS_FILES:
                raise
    name = _part(target)
    flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_CLOEXEC", 0)
    return os.open(name, flags, 0o666), name


def _named(descriptor: int, target: Path) -> Path:
    """Gives a nameless file a name beside its target."""
    name = _part(target)
    # Python follows the symbolic link only if a folder is given too; an absolute path ignores it.
    os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=descriptor, follow_symlinks=True)
    return name


def _part(target: Path) -> Path:
    # A name may have 255 bytes, and cutting text could split a character: cut the bytes.
    stem = os.fsdecode(os.fsencode(target.name)[:200])
    return target.with_name(f".{stem}.{secrets.token_hex(6)}.part")
