"""Restores a video: the frames change, everything else stays.

One thread decodes, the caller's thread restores, a third encodes; a few frames wait between them,
so memory depends on the size of a frame and not on the length of the video. Sound and subtitles
are copied packet by packet.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from clipweather_fast.restore.aside import written_aside
from clipweather_fast.restore.damage import Damage
from clipweather_fast.restore.frame_pixels import Pixels, colours, depth_of, pixel_format, rgb
from clipweather_fast.restore.held_prior import THUMBNAIL, HeldPrior
from clipweather_fast.restore.turn import Turn

if TYPE_CHECKING:
    import av
    from av.container import InputContainer, OutputContainer

__all__ = ["CODECS", "CONTAINERS", "FrameRestorer", "VideoError", "VideoResult", "restore_video"]

#: Containers by file name ending, and the encoder each takes unless one is named.
CONTAINERS = {
    ".mp4": ("mp4", "h264"),
    ".m4v": ("mp4", "h264"),
    ".mov": ("mov", "h264"),
    ".mkv": ("matroska", "h264"),
    ".webm": ("webm", "vp9"),
}

#: FFmpeg's encoders by codec and what they are told; {quality} is the constant rate factor.
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": ("libx264", {"crf": "{quality}", "preset": "medium"}),
    "h265": (
        "libx265",
        {"crf": "{quality}", "preset": "medium", "x265-params": "log-level=error"},
    ),
    "vp9": ("libvpx-vp9", {"crf": "{quality}", "b": "0", "row-mt": "1", "cpu-used": "2"}),
    "av1": ("libsvtav1", {"crf": "{quality}", "preset": "6"}),
    "ffv1": ("ffv1", {"level": "3"}),
}

#: Frames that wait between two threads.
AHEAD = 4


class VideoError(ValueError):
    """A video that cannot be read, or cannot be written as asked."""


class FrameRestorer(Protocol):
    """What restores frames; :class:`~clipweather_fast.restore.Restorer` does."""

    def encode_prior(self, frame: Pixels) -> Any:
        """The weather prior of a frame (H, W, 3), or None."""

    def restore_frame(self, frame: Pixels, prior: Any) -> Pixels:
        """The frame (H, W, 3) restored, in the same depth."""


@dataclass(frozen=True)
class VideoResult:
    """What was done.

    Attributes:
        frames: so many were written.
        priors: so many of them got a prior of their own.
        missing: frames that the source should have and has not: holes between the times of a
            transport stream, or fewer frames than the header declares.
        broken: packets of the source that came damaged, or frames that were decoded with errors.
        transparent: the source has transparency, which was left out.
    """

    frames: int
    priors: int
    missing: int = 0
    broken: int = 0
    transparent: bool = False


@dataclass(frozen=True)
class _Frame:
    """A decoded frame: upright RGB, its thumbnail, and what its encoding needs."""

    pixels: Pixels
    thumbnail: Pixels
    pts: int
    duration: int


def restore_video(
    source: str | PathLike[str],
    target: str | PathLike[str],
    restorer: FrameRestorer,
    *,
    codec: str = "auto",
    quality: int = 16,
    prior_limit: float = 0.02,
    progress: Callable[[int, int | None], None] | None = None,
) -> VideoResult:
    """Restores every frame of a video and copies its sound and subtitles.

    The number of frames, their times and durations, the frame rate, pixel shape, colour tags, bit
    depth, chapters and titles stay. A turned video (of a phone) is written upright. The file
    appears when it is complete: an error or a kill leaves nothing. What is damaged in the source is
    left out or shown as FFmpeg mends it, and the result says how much that is.

    Args:
        source: anything FFmpeg reads.
        target: the file to write; its ending chooses the container, see ``CONTAINERS``.
        restorer: restores frames.
        codec: one of ``CODECS``, or "auto": H.264, H.265 for more than 8 bits, VP9 in WebM.
        quality: constant rate factor of the encoder, lower is better; ffv1 is lossless.
        prior_limit: how much frames that share a prior may differ, see :class:`HeldPrior`.
        progress: called with the frames done and their expected number, if that is known.

    Returns:
        The numbers of frames and of priors computed, and of what was missing or broken.

    Raises:
        ImportError: PyAV is missing.
        VideoError: ``source`` is no video or is damaged so that it cannot be read, or ``target``
            cannot hold what it has.
        OSError: a file cannot be read or written.
    """
    av = _pyav()
    source, target = Path(source), Path(target)
    if target.suffix.lower() not in CONTAINERS:
        raise VideoError(f"the file to write must end in {', '.join(CONTAINERS)}, got {target}")
    if codec not in ("auto", *CODECS):
        raise VideoError(f"codec must be auto or one of {', '.join(CODECS)}, got {codec!r}")
    container = CONTAINERS[target.suffix.lower()][0]
    held = HeldPrior(restorer.encode_prior, prior_limit)
    with ExitStack() as stack:
        try:
            # As a file by name: FFmpeg takes what is before a colon for a protocol.
            reader = _Reader(stack.enter_context(av.open(f"file:{source}")), source)
            # Closed in the opposite order: the container writes its end before the file appears.
            file = stack.enter_context(written_aside(target))
            output = stack.enter_context(av.open(file, "w", format=container))
            writer = _Writer(output, reader, target, codec, quality)
            frames = _run(reader, writer, restorer, held, progress)
        except av.error.FFmpegError as error:
            words = error.strerror or type(error).__name__
            raise VideoError(f"{source}: {words}") from error
        if frames == 0:
            raise VideoError(f"{source}: its video has no frames")
    damage = reader.damage
    return VideoResult(frames, held.computed, damage.missing, damage.broken, reader.transparent)


def _pyav() -> Any:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "videos need PyAV: pip install 'clipweather_fast[video]' (or pip install av)"
        ) from error
    return av


def _run(
    reader: _Reader,
    writer: _Writer,
    restorer: FrameRestorer,
    held: HeldPrior[Pixels],
    progress: Callable[[int, int | None], None] | None,
) -> int:
    """Passes everything from the reader to the writer; returns the number of frames."""
    items = iter(reader)
    frames = 0
    decoder, encoder = ThreadPoolExecutor(1, "decode"), ThreadPoolExecutor(1, "encode")
    # One thread each: calls are served in order, and an exception comes out of result().
    ahead = deque(decoder.submit(next, items, None) for _ in range(AHEAD))
    behind: deque[Future[None]] = deque()
    try:
        while (item := ahead.popleft().result()) is not None:
            ahead.append(decoder.submit(next, items, None))
            if isinstance(item, _Frame):
                prior = held.of(item.pixels, item.thumbnail)
                pixels = restorer.restore_frame(item.pixels, prior)
                behind.append(encoder.submit(writer.write_frame, item, pixels))
                frames += 1
                if progress is not None:
                    progress(frames, reader.expected)
            else:
                behind.append(encoder.submit(writer.copy, item))
            while len(behind) > AHEAD:
                behind.popleft().result()
        behind.append(encoder.submit(writer.finish))
        for future in behind:
            future.result()
    finally:
        decoder.shutdown(wait=True, cancel_futures=True)
        encoder.shutdown(wait=True, cancel_futures=True)
    if writer.frames != frames:
        raise VideoError(f"{frames} frames were decoded, but {writer.frames} were encoded")
    return frames


class _Reader:
    """Iterates over a video's frames and, between them, the packets of sound and subtitles."""

    def __init__(self, container: InputContainer, source: Path) -> None:
        self.container = container
        video: Any = container.streams.best("video")
        if video is None:
            raise VideoError(f"{source}: there is no video in it")
        video.thread_type = "AUTO"
        self.video: Any = video
        self.copied = [s for s in container.streams if s.type in ("audio", "subtitle")]
        self.damage = Damage(container.format.name, video.frames)
        # The first frame says what the stream's header may not: turn, colours, depth.
        self._packets = container.demux([self.video, *self.copied])
        self._waiting: deque[Any] = deque()
        self._last: int | None = None
        while (first := self._first_frame()) is None and self._fill():
            pass
        if first is None:
            raise VideoError(f"{source}: its video has no frames")
        self.first: av.VideoFrame = first
        self.turn = Turn.of(first)

    @property
    def transparent(self) -> bool:
        """Whether there is transparency: in the frames, or (VP8 and VP9) beside them."""
        beside = self.video.metadata.get("alpha_mode") == "1"
        return beside or any(part.is_alpha for part in self.first.format.components)

    @property
    def expected(self) -> int | None:
        """How many frames there should be, from the header."""
        if self.video.frames:
            return int(self.video.frames)
        length = self.container.duration
        rate = self.video.average_rate
        return round(length / 1_000_000 * rate) if length and rate else None

    @property
    def step(self) -> int:
        """Time from frame to frame, in units of the stream's time base."""
        rate, base = self.video.average_rate, self.video.time_base
        return max(1, round(1 / (rate * base))) if rate and base else 1

    def _first_frame(self) -> Any:
        return next((item for item in self._waiting if not hasattr(item, "stream")), None)

    def _fill(self) -> bool:
        """Reads one packet; False at the end."""
        packet = next(self._packets, None)
        if packet is None:
            return False
        if packet.stream is self.video:
            self._decode(packet)
        elif packet.size or packet.pts is not None:  # the others tell decoders of the end
            if packet.dts is None:
                packet.dts = packet.pts
            self.damage.packet(packet)
            self._waiting.append(packet)
        return True

    def _decode(self, packet: Any) -> None:
        import av

        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            # One of a damaged stream: others follow that can be decoded, or there is no frame.
            self.damage.packet(packet, decoded=False)
            return
        self.damage.packet(packet)
        for frame in frames:
            self.damage.frame(frame)
        self._waiting.extend(frames)

    def __iter__(self) -> Iterator[Any]:
        while self._waiting or self._fill():
            while self._waiting:
                item = self._waiting.popleft()
                yield item if hasattr(item, "stream") else self._decoded(item)

    def _decoded(self, frame: av.VideoFrame) -> _Frame:
        step = frame.duration or self.step
        pts = frame.pts
        if pts is None:
            pts = 0 if self._last is None else self._last + step
        if self._last is not None and pts <= self._last:
            pts = self._last + 1  # an encoder would drop one of two frames of one time
        self._last = pts
        pixels = rgb(frame, depth_of(frame) > 8)
        small = frame.reformat(
            width=THUMBNAIL,
            height=THUMBNAIL,
            format="rgb24",
            **(colours(frame) | {"interpolation": "AREA"}),
        )
        return _Frame(
            self.turn.applied(pixels), cast(Pixels, small.to_ndarray()), pts, frame.duration or 0
        )


class _Writer:
    """Encodes frames and copies packets into a container."""

    def __init__(
        self, output: OutputContainer, reader: _Reader, target: Path, codec: str, quality: int
    ) -> None:
        self._output, self._reader, self.frames = output, reader, 0
        first, source = reader.first, reader.video
        depth = depth_of(first)
        if codec == "auto":
            codec = CONTAINERS[target.suffix.lower()][1]
            codec = "h265" if codec == "h264" and depth > 8 else codec
        name, options = CODECS[codec]
        options = {key: value.format(quality=quality) for key, value in options.items()}
        try:
            stream: Any = output.add_stream(name, rate=source.average_rate or 25, options=options)
        except ValueError as error:
            raise VideoError(f"{target.suffix} does not hold {codec}; take .mkv") from error
        self._stream = stream
        width, height = first.width, first.height
        shape = source.sample_aspect_ratio or Fraction(1)
        if reader.turn.exchanged:
            width, height, shape = height, width, 1 / shape
        stream.width, stream.height = width, height
        stream.pix_fmt = self._format = pixel_format(stream, first, width, height)
        context = stream.codec_context
        context.sample_aspect_ratio = shape
        stream.time_base = context.time_base = source.time_base
        for tag in ("color_range", "color_primaries", "color_trc", "colorspace"):
            setattr(context, tag, getattr(first, tag))
        self._copies = {s.index: self._copied(s, target) for s in reader.copied}
        for index, copy in ((source.index, stream), *self._copies.items()):
            copy.metadata.update(_titles(reader.container.streams[index].metadata))
            copy.disposition = reader.container.streams[index].disposition
        output.metadata.update(_titles(reader.container.metadata))
        if reader.container.chapters():
            output.set_chapters(reader.container.chapters())

    def _copied(self, stream: Any, target: Path) -> Any:
        try:
            return self._output.add_stream_from_template(stream)
        except ValueError as error:
            kind = {"audio": "sound", "subtitle": "subtitles"}[stream.type]
            raise VideoError(
                f"{target.suffix} does not hold {kind} in {stream.codec_context.name}; take .mkv"
            ) from error

    def write_frame(self, frame: _Frame, pixels: Pixels) -> None:
        import av

        first = self._reader.first
        image = av.VideoFrame.from_ndarray(
            pixels, format="rgb24" if pixels.dtype == np.uint8 else "rgb48le"
        )
        image = image.reformat(format=self._format, **colours(first, back=True))
        image.pts, image.time_base = frame.pts, self._reader.video.time_base
        image.duration = frame.duration
        self._mux(self._stream.encode(image))

    def copy(self, packet: Any) -> None:
        packet.stream = self._copies[packet.stream.index]
        self._output.mux(packet)

    def finish(self) -> None:
        self._mux(self._stream.encode(None))

    def _mux(self, packets: list[Any]) -> None:
        self.frames += len(packets)
        self._output.mux(packets)


def _titles(metadata: dict[str, str]) -> dict[str, str]:
    """Titles, languages and dates, without what the muxer writes itself or what is true no more."""
    own = ("encoder", "major_brand", "minor_version", "compatible_brands", "rotate", "duration")
    statistics = ("bps", "number_of_", "_statistics")
    return {
        key: value
        for key, value in metadata.items()
        if key.lower() not in own and not key.lower().startswith(statistics)
    }
