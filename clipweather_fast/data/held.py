"""Decoded pictures in memory that the worker processes of a loader share."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch

from clipweather_fast.data.window import picture_source
from clipweather_fast.restore.picture import Samples

__all__ = ["HeldPictures"]


class HeldPictures:
    """Pictures decoded once, one behind the other in a single block of shared memory.

    A single one, because each block costs every process a file descriptor. ``held[i]`` is a view,
    (H, W, 3), uint8 or uint16.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._starts = [0, *accumulate(sizes)]
        self._block = torch.empty(self._starts[-1], dtype=torch.uint8).share_memory_()
        self._kinds: list[tuple[tuple[int, ...], str]] = [((0,), "|u1")] * len(sizes)

    def __getitem__(self, number: int) -> Samples:
        shape, kind = self._kinds[number]
        start = self._starts[number]
        count = int(np.prod(shape)) * np.dtype(kind).itemsize
        view: Samples = self._block.numpy()[start : start + count].view(kind).reshape(shape)
        return view

    @classmethod
    def decoded(cls, paths: Sequence[Path], limit: int) -> HeldPictures | None:
        """All pictures; None if they need more than ``limit`` bytes. Several threads decode.

        Raises:
            PictureError: one cannot be decoded.
        """
        sizes: list[int] = []
        total = 0
        for path in paths:
            with picture_source(path) as source:
                # Even, so that sixteen bits are aligned.
                size = source.height * source.width * 3 * source.bytes_per_sample
            sizes.append(size + size % 2)
            total += sizes[-1]
            if total > limit:
                return None
        held = cls(sizes)

        def fill(number: int) -> None:
            with picture_source(paths[number]) as source:
                pixels = source.read()
            held._kinds[number] = (pixels.shape, pixels.dtype.str)
            held[number][:] = pixels

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            list(pool.map(fill, range(len(paths))))
        return held
