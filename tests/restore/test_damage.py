"""A damaged video is restored as far as it can be read, and what it lacks is counted."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipweather_fast.restore.video import restore_video
from videos import Copier, make

av = pytest.importorskip("av", reason="PyAV is not installed")


def recording(path: Path, frames: int = 60) -> bytes:
    """A transport stream, as cameras send it: packets of 188 bytes."""
    content = make(path, frames=frames, sound=None).read_bytes()
    assert content[::188] == b"G" * (len(content) // 188)
    return content


def pictures_in(content: bytes) -> list[int]:
    """The packets of a transport stream in which a picture begins."""
    starts = range(0, len(content), 188)
    # ISO 13818-1, 2.4.3.2: the first bit of the identity's two bytes; the video's is 0x100.
    return [n for n in starts if content[n + 1 : n + 3] == b"\x41\x00"]


def test_frames_that_a_recording_lost_are_counted(tmp_path: Path) -> None:
    content = recording(tmp_path / "whole.ts")
    whole = restore_video(tmp_path / "whole.ts", tmp_path / "whole.mp4", Copier())
    assert (whole.frames, whole.missing, whole.broken) == (60, 0, 0)
    begins = pictures_in(content)
    for name, first, last in (("three pictures", 20, 23), ("the middle of two", 30, 32)):
        middle = 188 * (name != "three pictures")
        cut = content[: begins[first] + middle] + content[begins[last] + middle :]
        (tmp_path / "cut.ts").write_bytes(cut)
        result = restore_video(tmp_path / "cut.ts", tmp_path / "cut.mp4", Copier())
        assert result.missing > 0 or result.broken > 0, name
        assert result.frames + result.missing == 60, name


def test_bytes_that_are_wrong_in_a_recording_are_counted(tmp_path: Path) -> None:
    content = bytearray(recording(tmp_path / "whole.ts"))
    begins = pictures_in(bytes(content))
    for number in (10, 20, 30):
        place = begins[number] + 100
        content[place : place + 60] = bytes(60)
    (tmp_path / "wrong.ts").write_bytes(content)
    result = restore_video(tmp_path / "wrong.ts", tmp_path / "wrong.mp4", Copier())
    assert result.missing + result.broken > 0


def test_an_uneven_recording_and_a_film_with_pauses_lack_nothing(tmp_path: Path) -> None:
    moments = [0, 40, 141, 180, 300, 320, 400, 620]
    for name in ("uneven.ts", "uneven.mkv"):
        source = make(tmp_path / name, frames=8, times=moments, sound=None)
        result = restore_video(source, tmp_path / "clear.mkv", Copier())
        assert (result.missing, result.broken) == (0, 0), name
    pauses = [0, 40, 80, 120, 160, 1000, 1040, 1080]
    source = make(tmp_path / "pauses.mkv", frames=8, times=pauses, sound=None)
    assert restore_video(source, tmp_path / "clear.mkv", Copier()).missing == 0


def test_a_film_that_breaks_off_lacks_frames(tmp_path: Path) -> None:
    """The header, at the front as in files for the web, declares more than there is."""
    source = make(tmp_path / "whole.mp4", sound=None)
    with (
        av.open(str(source)) as whole,
        av.open(str(tmp_path / "web.mp4"), "w", options={"movflags": "+faststart"}) as container,
    ):
        stream = container.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.size:
                packet.stream = stream
                container.mux(packet)
    content = (tmp_path / "web.mp4").read_bytes()
    (tmp_path / "web.mp4").write_bytes(content[: len(content) * 3 // 4])
    result = restore_video(tmp_path / "web.mp4", tmp_path / "clear.mp4", Copier())
    assert 0 < result.frames < 25
    assert result.frames + result.missing == 25
