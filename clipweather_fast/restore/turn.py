"""How the frames of a video are turned and mirrored when they are shown."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import av

__all__ = ["Turn"]


class Turn(NamedTuple):
    """What brings frames upright: rows and columns are exchanged, then either runs backwards."""

    exchanged: bool = False
    rows: bool = False
    columns: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Turn:
        """What the frame's display matrix asks for, to the nearest quarter of a turn."""
        try:
            matrix: Any = frame.side_data.get("DISPLAYMATRIX")
        except ValueError:  # there is something else beside it that PyAV has no name for
            return QUARTERS[round(frame.rotation / 90) % 4]
        if matrix is None:
            return cls()
        # A pixel at (x, y) is shown at (a x + c y, b x + d y), as libavutil/display.h has it.
        a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
        if abs(b) > abs(a):
            return cls(True, rows=b < 0, columns=c < 0)
        return cls(False, rows=d < 0, columns=a < 0)

    def applied(self, pixels: NDArray[Any]) -> NDArray[Any]:
        """The frame (H, W, 3) upright."""
        if self.exchanged:
            pixels = pixels.swapaxes(0, 1)
        pixels = pixels[:: -1 if self.rows else 1, :: -1 if self.columns else 1]
        return np.ascontiguousarray(pixels)


#: By quarters of a turn against the clock.
QUARTERS = (
    Turn(),
    Turn(True, rows=True),
    Turn(False, rows=True, columns=True),
    Turn(True, columns=True),
)
