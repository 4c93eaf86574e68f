"""A restored video has the frames, times, sound and subtitles of the original."""

from __future__ import annotations

import struct
import weakref
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clipweather_fast.restore.held_prior import HeldPrior
from clipweather_fast.restore.turn import Turn
from clipweather_fast.restore.video import VideoError, restore_video
from videos import NTSC, Copier, make, packets, picture, planes, times

av = pytest.importorskip("av", reason="PyAV is not installed")


def test_frames_times_rate_and_sound_stay(tmp_path: Path) -> None:
    source = make(tmp_path / "rain.mp4")
    seen: list[tuple[int, int | None]] = []
    result = restore_video(
        source, tmp_path / "clear.mp4", Copier(), progress=lambda *at: seen.append(at)
    )
    assert result.frames == 25
    assert seen == [(number, 25) for number in range(1, 26)]
    assert times(tmp_path / "clear.mp4") == times(source)
    assert packets(tmp_path / "clear.mp4") == packets(source)
    with av.open(str(tmp_path / "clear.mp4")) as container, av.open(str(source)) as original:
        ours, theirs = container.streams.video[0], original.streams.video[0]
        assert ours.frames == 25
        assert ours.average_rate == theirs.average_rate == NTSC
        assert ours.duration * ours.time_base == theirs.duration * theirs.time_base
        assert container.metadata["title"] == "A drive in the rain"
        assert container.streams.audio[0].language == "deu"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clear.mp4", "rain.mp4"]


def test_variable_frame_rate(tmp_path: Path) -> None:
    moments = [0, 40, 41, 120, 500, 533, 567, 1000]
    source = make(tmp_path / "vfr.mkv", frames=8, times=moments, sound=None)
    restore_video(source, tmp_path / "clear.mkv", Copier())
    assert [time * 1000 for time, _ in times(tmp_path / "clear.mkv")] == moments


@pytest.mark.parametrize(
    ("pixels", "codec", "tags"),
    [
        ("yuv420p", "libx264", {}),
        ("yuv422p", "libx264", {"colorspace": 1, "color_range": 1}),
        ("yuv444p", "libx264", {"colorspace": 6, "color_range": 2}),
        ("yuv420p10le", "libx265", {"colorspace": 9, "color_primaries": 9}),
    ],
)
def test_colours_and_depth_stay(
    pixels: str, codec: str, tags: dict[str, int], tmp_path: Path
) -> None:
    """Frames that are not changed come back within a level or two, on average in the same place."""
    source = make(tmp_path / "a.mkv", frames=3, codec=codec, pixels=pixels, tags=tags)
    restorer = Copier()
    restore_video(source, tmp_path / "b.mkv", restorer, codec="ffv1")
    before, after = planes(source).astype(int), planes(tmp_path / "b.mkv")
    assert after.dtype == (np.uint16 if "10" in pixels else np.uint8)
    scale = 4 if "10" in pixels else 1
    difference = (after - before) / scale
    assert abs(difference.mean()) < 0.5
    assert np.abs(difference).mean() < 0.6
    with av.open(str(tmp_path / "b.mkv")) as container:
        context = container.streams.video[0].codec_context
        assert context.pix_fmt == pixels
        for name, value in tags.items():
            assert getattr(context, name) == value


def test_the_network_sees_the_right_colours_and_its_change_is_kept(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", frames=2, pixels="yuv444p")
    restorer = Copier(change=10)
    restore_video(source, tmp_path / "b.mkv", restorer, codec="ffv1")
    with av.open(str(tmp_path / "b.mkv")) as container:
        found = next(container.decode(video=0)).to_ndarray(format="rgb24").astype(int)
    # What is bright saturates; the compression of the source costs the rest.
    assert np.abs(found - np.minimum(picture(0, 64, 48).astype(int) + 10, 255)).mean() < 2.5


def test_more_than_eight_bits_become_h265_and_odd_sides_stay(tmp_path: Path) -> None:
    deep = make(tmp_path / "deep.mp4", frames=3, codec="libx265", pixels="yuv420p10le")
    restore_video(deep, tmp_path / "deep clear.mp4", Copier())
    odd = make(tmp_path / "odd.mkv", frames=3, size=(65, 49), codec="ffv1", pixels="yuv420p")
    restore_video(odd, tmp_path / "odd clear.mp4", Copier())
    with av.open(str(tmp_path / "deep clear.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt) == ("hevc", "yuv420p10le")
    with av.open(str(tmp_path / "odd clear.mp4")) as container:
        context = container.streams.video[0].codec_context
        assert (context.width, context.height, context.pix_fmt) == (65, 49, "yuv444p")


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        video.codec_context.sample_aspect_ratio = Fraction(16, 15)
        for packet in video.encode(av.VideoFrame.from_ndarray(picture(0, 64, 48), format="rgb24")):
            container.mux(packet)
        container.mux(video.encode())
    restore_video(tmp_path / "a.mkv", tmp_path / "b.mp4", Copier())
    with av.open(str(tmp_path / "b.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(16, 15)


def test_a_turned_video_becomes_upright(tmp_path: Path) -> None:
    """The turn is in the stream's H.264, as a note to who shows it."""
    plain = make(tmp_path / "plain.mp4", frames=4, sound=None)
    with av.open(str(plain)) as source, av.open(str(tmp_path / "turned.h264"), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0], opaque=True)
        turn = av.BitStreamFilterContext(
            "h264_mp4toannexb,h264_metadata=display_orientation=insert:rotate=90",
            source.streams.video[0],
            stream,
        )
        for packet in source.demux(video=0):
            for turned in turn.filter(packet if packet.size else None):
                turned.stream = stream
                container.mux(turned)
    with av.open(str(tmp_path / "turned.h264")) as container:
        angle = next(container.decode(video=0)).rotation
    assert abs(angle) == 90
    restorer = Copier()
    restore_video(tmp_path / "turned.h264", tmp_path / "upright.mp4", restorer)
    assert {shape for shape, _ in restorer.frames} == {(64, 48, 3)}
    with av.open(str(tmp_path / "upright.mp4")) as container:
        frame = next(container.decode(video=0))
        assert (frame.width, frame.height, frame.rotation) == (48, 64, 0)
        found = frame.to_ndarray(format="rgb24").astype(int)
    expected = np.rot90(picture(0, 64, 48), angle // 90).astype(int)
    assert np.abs(found - expected).mean() < 6


#: Names of what a track's matrix (a, b, c, d) does to a picture when it is shown.
MATRICES: dict[str, tuple[tuple[int, int, int, int], Callable[[Any], Any]]] = {
    "a quarter with the clock": ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
    "a quarter against it": ((0, -1, 1, 0), np.rot90),
    "upside down": ((-1, 0, 0, -1), lambda p: np.rot90(p, 2)),
    "mirrored": ((-1, 0, 0, 1), np.fliplr),
    "mirrored and turned": ((0, 1, 1, 0), lambda p: p.swapaxes(0, 1)),
}


@pytest.mark.parametrize("name", MATRICES)
def test_a_phones_video_becomes_upright(name: str, tmp_path: Path) -> None:
    """The turn is in the file's track header, as phones write it."""
    matrix, shown = MATRICES[name]
    source = make(tmp_path / "plain.mp4", frames=2, sound=None)
    content = bytearray(source.read_bytes())
    place = content.index(b"tkhd") + 44  # ISO 14496-12, 8.3.2
    assert content[place : place + 4] == struct.pack(">i", 1 << 16)
    a, b, c, d = (value << 16 for value in matrix)
    content[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    source.write_bytes(content)
    restore_video(source, tmp_path / "upright.mp4", Copier())
    with av.open(str(tmp_path / "upright.mp4")) as container:
        frame = next(container.decode(video=0))
        assert frame.rotation == 0
        found = frame.to_ndarray(format="rgb24").astype(int)
    expected = shown(picture(0, 64, 48)).astype(int)
    assert found.shape == expected.shape
    assert np.abs(found - expected).mean() < 6


def test_a_turn_beside_something_without_a_name() -> None:
    class Frame:
        def __init__(self, rotation: int) -> None:
            self.rotation = rotation

        @property
        def side_data(self) -> Any:
            raise ValueError("99 is not a valid Type")

    pixels = picture(0, 64, 48)
    for rotation in (0, 90, 180, -180, -90):
        turn = Turn.of(Frame(rotation))
        np.testing.assert_array_equal(turn.applied(pixels), np.rot90(pixels, rotation // 90))


def test_a_name_with_a_colon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("12h30.mp4"), frames=2, sound=None).rename("12:30.mp4")
    assert restore_video("12:30.mp4", "clear 12:30.mp4", Copier()).frames == 2


def test_twelve_bits_stay(tmp_path: Path) -> None:
    arguments = {"frames": 2, "codec": "ffv1", "pixels": "yuv422p12le", "sound": None}
    source = make(tmp_path / "a.mkv", **arguments)
    restore_video(source, tmp_path / "b.mkv", Copier(), codec="ffv1")
    with av.open(str(tmp_path / "b.mkv")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv422p12le"


def test_subtitles_are_copied_or_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "words.srt"
    text.write_text("1\n00:00:00,100 --> 00:00:00,600\nIt rains.\n")
    source = make(tmp_path / "silent.mkv", sound=None)
    both = tmp_path / "both.mkv"
    with (
        av.open(str(source)) as video,
        av.open(str(text)) as subtitles,
        av.open(str(both), "w") as container,
    ):
        streams = {
            id(of): container.add_stream_from_template(of, opaque=True)
            for of in (video.streams.video[0], subtitles.streams.subtitles[0])
        }
        for one in (video, subtitles):
            for packet in one.demux():
                if packet.size:
                    packet.stream = streams[id(packet.stream)]
                    container.mux(packet)
    restore_video(both, tmp_path / "clear.mkv", Copier())
    found = packets(tmp_path / "clear.mkv", "subtitles")
    assert found == packets(both, "subtitles")
    assert b"It rains." in found[0][1]
    with pytest.raises(VideoError, match=r"\.mp4 does not hold subtitles in .*take \.mkv"):
        restore_video(both, tmp_path / "clear.mp4", Copier())
    assert not (tmp_path / "clear.mp4").exists()


def test_frames_of_one_scene_share_a_prior(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4")
    restorer = Copier()
    assert restore_video(source, tmp_path / "b.mp4", restorer).priors == 3
    assert [prior for _, prior in restorer.frames] == [1] * 10 + [2] * 10 + [3] * 5
    assert restore_video(source, tmp_path / "c.mp4", Copier(), prior_limit=-1).priors == 25


def test_slow_changes_add_up() -> None:
    held = HeldPrior(lambda frame: frame, limit=0.02)
    dim = [np.full((32, 32, 3), level, np.uint8) for level in range(100, 120)]
    priors = [held.of(number, thumbnail) for number, thumbnail in enumerate(dim)]
    # 5 levels of 255 are below the limit, 6 are above.
    assert priors == [0] * 6 + [6] * 6 + [12] * 6 + [18] * 2


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    """At no time are more than a dozen frames between decoding and encoding."""
    alive: list[weakref.ref[NDArray[Any]]] = []
    most = 0

    class Counter(Copier):
        def restore_frame(self, frame: NDArray[Any], prior: Any) -> NDArray[Any]:
            nonlocal most
            restored = frame.copy()
            alive.append(weakref.ref(restored))
            most = max(most, sum(one() is not None for one in alive))
            return restored

    source = make(tmp_path / "a.mkv", frames=80, sound=None, codec="ffv1")
    assert restore_video(source, tmp_path / "b.mkv", Counter(), codec="ffv1").frames == 80
    assert most <= 8


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    source = make(tmp_path / "a.mp4")
    (tmp_path / "b.mp4").write_bytes(b"what was there")

    class Failing(Copier):
        def restore_frame(self, frame: NDArray[Any], prior: Any) -> NDArray[Any]:
            if len(self.frames) == 10:
                raise ArithmeticError("NaN")
            return super().restore_frame(frame, prior)

    with pytest.raises(ArithmeticError, match="NaN"):
        restore_video(source, tmp_path / "b.mp4", Failing())
    assert (tmp_path / "b.mp4").read_bytes() == b"what was there"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_what_is_no_video_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    whole = make(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        tone.sample_rate = 8000
        container.mux(audio.encode(tone))
        container.mux(audio.encode())
    for name, reason in (
        ("text.mp4", "Invalid data"),
        ("empty.mp4", "Invalid data"),
        ("cut.mp4", "Invalid data"),
        ("sound.wav", "no video in it"),
    ):
        with pytest.raises(VideoError, match=reason) as found:
            restore_video(tmp_path / name, tmp_path / "out.mp4", Copier())
        assert str(found.value).startswith(f"{tmp_path / name}: ")
    with pytest.raises(VideoError, match=r"must end in \.mp4"):
        restore_video(tmp_path / "whole.mp4", tmp_path / "out.avi", Copier())
    with pytest.raises(VideoError, match="codec must be auto or one of h264"):
        restore_video(tmp_path / "whole.mp4", tmp_path / "out.mp4", Copier(), codec="x")
    with pytest.raises(VideoError, match=r"\.webm does not hold h264; take \.mkv"):
        restore_video(tmp_path / "whole.mp4", tmp_path / "out.webm", Copier(), codec="h264")
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("pixels", ["yuva420p", "bgra", "yuv420p"])
def test_transparency_is_left_out_and_said_so(pixels: str, tmp_path: Path) -> None:
    source = make(tmp_path / "a.mkv", frames=2, codec="ffv1", pixels=pixels, sound=None)
    result = restore_video(source, tmp_path / "b.mkv", Copier())
    assert result.transparent == (pixels != "yuv420p")
