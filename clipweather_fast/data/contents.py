"""What is in picture files: sizes and fingerprints of the decoded pixels, many files at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from clipweather_fast.data.window import picture_source
from clipweather_fast.restore.picture import PictureError, Samples

__all__ = ["Content", "contents", "fingerprint"]


@dataclass(frozen=True)
class Content:
    """What a picture file holds.

    Attributes:
        height, width: pixels; 0 if the file cannot be read.
        pixels: fingerprint of the decoded pixels; empty if they were not decoded.
        error: why the file cannot be read; empty if it can.
    """

    height: int = 0
    width: int = 0
    pixels: bytes = b""
    error: str = ""


def fingerprint(pixels: Samples) -> bytes:
    """Sixteen bytes that equal pictures share, whatever their file format; (H, W, 3) samples."""
    if pixels.dtype == np.uint16 and not (pixels % 257).any():
        pixels = (pixels // 257).astype(np.uint8)  # eight bits in a file for sixteen
    hashed = blake2b(repr((pixels.shape, pixels.dtype.str)).encode(), digest_size=16)
    hashed.update(np.ascontiguousarray(pixels).data)
    return hashed.digest()


def contents(
    paths: Iterable[Path],
    decode: bool = True,
    workers: int | None = None,
    progress: Callable[[], None] = lambda: None,
) -> dict[Path, Content]:
    """Reads picture files in threads; decoders and the hash run beside each other.

    Args:
        paths: the files.
        decode: False reads only their headers.
        workers: threads; None: one per processor.
        progress: called in this thread after each file.
    """
    known: dict[Path, Content] = {}
    with ThreadPoolExecutor(workers or os.cpu_count() or 1) as pool:
        waiting = {pool.submit(_content, path, decode): path for path in dict.fromkeys(paths)}
        try:
            for done in as_completed(waiting):
                known[waiting[done]] = done.result()
                progress()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return known


def _content(path: Path, decode: bool) -> Content:
    try:
        with picture_source(path) as source:
            pixels = fingerprint(source.read()) if decode else b""
            return Content(source.height, source.width, pixels)
    except PictureError as error:
        return Content(error=error.words)
