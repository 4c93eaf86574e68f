"""``clipweather video``: the command itself, and killed."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from clipweather_fast.cli import app
from command import COMMAND, here, words

av = pytest.importorskip("av", reason="PyAV is not installed")


def make(path: Path, frames: int, size: tuple[int, int], sound: str = "aac") -> Path:
    """A video of slowly moving bands, with sound."""
    y, x = np.mgrid[: size[1], : size[0]]
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25)
        video.width, video.height, video.pix_fmt = *size, "yuv420p"
        audio = container.add_stream(sound, rate=48000, layout="mono")
        for number in range(frames):
            bands = np.stack([(x + number) % 256, y % 256, (x + y) % 256], axis=-1)
            frame = av.VideoFrame.from_ndarray(bands.astype(np.uint8), format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1920 * frames), np.float32), "fltp", "mono")
        tone.sample_rate = 48000
        container.mux(audio.encode(tone))
        container.mux(audio.encode())
    return path


def test_a_video_is_restored(checkpoint: Path, tmp_path: Path) -> None:
    source = make(tmp_path / "a drive.mp4", 12, (96, 64))
    (tmp_path / "clear").mkdir()
    done = here("video", source, "-o", tmp_path / "clear", "-n", checkpoint, "--crf", "30")
    assert done.exit_code == 0, done.stderr
    assert "12 frames, 1 priors (" in done.stderr
    with av.open(str(tmp_path / "clear" / "a drive.mp4")) as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]
        assert sum(1 for _ in container.decode(video=0)) == 12


def test_a_damaged_recording_is_restored_and_named(checkpoint: Path, tmp_path: Path) -> None:
    source = make(tmp_path / "a.ts", 30, (64, 48), sound="mp2")
    content = source.read_bytes()
    half = len(content) // 376 * 188
    source.write_bytes(content[:half] + content[half + 188 * 60 :])
    target = tmp_path / "b.mp4"
    done = here("video", source, "-o", target, "-n", checkpoint)
    assert done.exit_code == 1
    found = re.search(
        r"a\.ts is damaged: (\d+) frames are missing, (\d+) packets or frames are broken; "
        r".*b\.mp4 has the rest\n$",
        done.stderr,
    )
    assert found, done.stderr
    missing, broken = map(int, found.groups())
    assert missing + broken > 0
    with av.open(str(target)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30 - missing


def test_transparency_is_said_to_be_left_out(checkpoint: Path, tmp_path: Path) -> None:
    source = tmp_path / "a.mkv"
    with av.open(str(source), "w") as container:
        video = container.add_stream("ffv1", rate=25)
        video.width, video.height, video.pix_fmt = 64, 48, "bgra"
        container.mux(video.encode(av.VideoFrame(64, 48, "bgra")))
        container.mux(video.encode())
    done = here("video", source, "-o", tmp_path / "b.mkv", "-n", checkpoint)
    assert done.exit_code == 0, done.stderr
    assert f"{source}: its transparency was left out" in done.stderr


def test_an_interrupted_run_leaves_no_video(checkpoint: Path, tmp_path: Path) -> None:
    source = make(tmp_path / "long.mp4", 400, (320, 240))
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "long.mp4"
    command = [*COMMAND, "video", str(source), "-o", str(target), "-n", str(checkpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            # A nameless file that has grown is among its open files once frames are encoded.
            deadline = time.monotonic() + 60
            while not being_written(process.pid, target.parent):
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline, "nothing was written in a minute"
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    assert "interrupted: " in said
    assert "Traceback" not in said
    assert list(target.parent.iterdir()) == []


def being_written(pid: int, folder: Path) -> bool:
    """Whether a process has a file in this folder open that is not empty."""
    for entry in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            if str(entry.readlink()).startswith(f"{folder}/") and entry.stat().st_size > 0:
                return True
        except OSError:
            continue
    return False


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (("none.mp4", "-o", "b.mp4"), 2, "'none.mp4' does not exist"),
        (("a.mp4",), 2, "Missing option '--output'"),
        (("a.mp4", "-o", "a.mp4"), 2, "'--output' / '-o': a.mp4 is the input"),
        (("a.mp4", "-o", "b.avi"), 2, "'--output' / '-o': b.avi must end in .mp4"),
        (("a.mp4", "-o", "no/b.mp4"), 2, "'--output' / '-o': there is no folder no"),
        (("a.mp4", "-o", "b.mp4", "--codec", "h263"), 2, "'--codec'"),
        (("a.mp4", "-o", "b.mp4", "--crf", "64"), 2, "'--crf'"),
        (("text.mp4", "-o", "b.mp4"), 1, "clipweather video: text.mp4: Invalid data"),
    ],
)
def test_what_cannot_be_is_named(
    arguments: tuple[str, ...],
    code: int,
    reason: str,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    make(Path("a.mp4"), 2, (64, 48))
    Path("text.mp4").write_text("no video")
    result = CliRunner().invoke(app, ["video", *arguments, "-n", str(checkpoint)])
    assert result.exit_code == code
    assert reason in words(result.output)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "text.mp4"]
