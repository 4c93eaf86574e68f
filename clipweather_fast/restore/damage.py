"""What a video lost on its way: frames that are not there, and packets that came broken.

FFmpeg passes over both without a word, as a player has to.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

__all__ = ["Damage"]

#: FFmpeg's names of the formats that are sent and recorded as they come: their frames follow each
#: other evenly, so a hole between two is a loss. Files of other formats may hold frames when they
#: like, and most of them say how many.
STREAMED = ("mpegts", "mpeg")
#: The part of the steps from frame to frame that must be alike, and how much they may differ.
ALIKE, DIFFERENCE = 0.75, 0.1


class Damage:
    """Counts while a video is read.

    Attributes:
        broken: packets, of sound and subtitles too, that are marked as damaged or that cannot be
            decoded; or frames that were decoded with errors, if these are more.
    """

    def __init__(self, format: str, declared: int) -> None:
        """Of a container of this format, whose header declares so many frames (0: it does not)."""
        self._streamed = any(name in STREAMED for name in format.split(","))
        self._declared = declared
        self._frames = self._packets = self._unclean = self._unshown = 0
        self._last: int | None = None
        self._steps: Counter[int] = Counter()

    def packet(self, packet: Any, decoded: bool = True) -> None:
        """Counts a packet, and whether it could be decoded."""
        self._packets += bool(packet.is_corrupt or not decoded)
        self._unshown += bool(packet.is_discard)

    def frame(self, frame: Any) -> None:
        """Counts a frame of the video."""
        self._frames += 1
        self._unclean += bool(frame.is_corrupt)
        if frame.pts is not None:
            if self._last is not None:
                self._steps[frame.pts - self._last] += 1
            self._last = frame.pts

    @property
    def broken(self) -> int:
        return max(self._packets, self._unclean)

    @property
    def missing(self) -> int:
        """Frames that should be there and are not, as far as that can be known."""
        if not self._streamed:
            return max(0, self._declared - self._unshown - self._frames)
        steps = sorted(self._steps.elements())
        usual = steps[len(steps) // 2] if steps else 0
        even = sum(abs(step - usual) <= DIFFERENCE * usual for step in steps)
        if usual <= 0 or even < ALIKE * len(steps):
            return 0
        return sum(max(0, round(step / usual - 0.25) - 1) for step in steps)
