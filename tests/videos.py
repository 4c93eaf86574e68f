"""Small videos for the tests, what is in a file of one, and a restorer that changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

av = pytest.importorskip("av", reason="PyAV is not installed")

NTSC = Fraction(30000, 1001)


class Copier:
    """Restores nothing, and notes what it was asked."""

    def __init__(self, change: int = 0) -> None:
        self.change = change
        self.priors = 0
        self.frames: list[tuple[tuple[int, ...], Any]] = []

    def encode_prior(self, frame: NDArray[Any]) -> int:
        self.priors += 1
        return self.priors

    def restore_frame(self, frame: NDArray[Any], prior: Any) -> NDArray[Any]:
        self.frames.append((frame.shape, prior))
        return frame + np.array(self.change, frame.dtype)


def picture(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A smooth picture with a bar for each frame; the scene changes every ten frames."""
    y, x = np.mgrid[:height, :width]
    tint = 60 * (number // 10) % 200
    planes = [np.full_like(x, 40 + tint), 40 + 100 * y // height, 60 + 100 * x // width]
    frame = np.stack(planes, axis=-1).astype(np.uint8)
    frame[: height // 8, 2 * number : 2 * number + 4] = 230
    return frame


def make(
    path: Path,
    frames: int = 25,
    size: tuple[int, int] = (64, 48),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rate: Fraction = NTSC,
    times: Sequence[int] | None = None,
    sound: str | None = "aac",
    tags: dict[str, int] | None = None,
) -> Path:
    """A video with a tone; ``times`` are milliseconds."""
    with av.open(str(path), "w") as container:
        container.metadata["title"] = "A drive in the rain"
        video = container.add_stream(codec, rate=rate)
        video.width, video.height, video.pix_fmt = *size, pixels
        if codec.startswith("libx26"):
            video.options = {"crf": "8", "x265-params": "log-level=error"}
        for name, value in (tags or {}).items():
            setattr(video.codec_context, name, value)
        if times is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        if sound is not None:
            audio = container.add_stream(sound, rate=48000, layout="mono")
            audio.metadata["language"] = "deu"
        for number in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[number], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            wave = np.sin(np.arange(int(48000 * frames / rate)) / 20).astype(np.float32)[None]
            tone = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
            tone.sample_rate, tone.pts = 48000, 0
            container.mux(audio.encode(tone))
            container.mux(audio.encode())
    return path


def times(path: Path) -> list[tuple[Fraction, Fraction]]:
    """Time and duration of every frame, in seconds."""
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return [(f.pts * f.time_base, (f.duration or 0) * f.time_base) for f in frames]


def packets(path: Path, kind: str = "audio") -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        found = container.demux(container.streams.get(**{kind: 0}))
        return [(p.pts * p.time_base, bytes(p)) for p in found if p.size]


def planes(path: Path) -> NDArray[Any]:
    """The frames as they are stored, without a conversion of colours."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray() for frame in container.decode(video=0)])
