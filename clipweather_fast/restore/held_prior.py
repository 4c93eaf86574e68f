"""The weather prior of a video, computed anew only when the picture has changed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

__all__ = ["THUMBNAIL", "HeldPrior"]

#: Side of the thumbnails that are compared.
THUMBNAIL = 32

Frame = TypeVar("Frame")


class HeldPrior(Generic[Frame]):
    """Gives every frame a prior, and the same one to frames that look alike.

    Two frames look alike when their thumbnails (32 x 32, area means of R, G and B in [0, 1]) differ
    by at most ``limit`` in the mean of the absolute differences. A frame is compared with the one
    whose prior is held, not with the one before it, so that slow changes add up and are seen.

    Args:
        encode: computes the prior of a frame.
        limit: 0 reuses a prior for identical thumbnails only; a negative limit never does.
    """

    def __init__(self, encode: Callable[[Frame], Any], limit: float = 0.02) -> None:
        self._encode = encode
        self._limit = limit
        self._thumbnail: NDArray[Any] | None = None
        self._prior: Any = None
        self.computed = 0

    def of(self, frame: Frame, thumbnail: NDArray[np.uint8]) -> Any:
        """The prior to restore this frame with.

        Args:
            frame: what ``encode`` takes.
            thumbnail: the frame scaled to (32, 32, 3).
        """
        small = thumbnail.astype(np.float32) / np.float32(255)
        if self._thumbnail is not None:
            change = float(np.abs(small - self._thumbnail).mean())
            if change <= self._limit:
                return self._prior
        self._prior, self._thumbnail = self._encode(frame), small
        self.computed += 1
        return self._prior
