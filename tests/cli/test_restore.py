"""``clipweather restore`` on photographs, on hostile files, and killed."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from clipweather_fast.cli import app
from clipweather_fast.cli._stopping import stoppable
from clipweather_fast.cli.restore import Run
from clipweather_fast.restore import Restorer, read_picture
from command import COMMAND, clipweather, here, in_snow, is_whole, words

data = pytest.importorskip("skimage.data", reason="scikit-image brings the photographs")
datasets = pytest.importorskip("sklearn.datasets", reason="scikit-learn brings the photographs")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of photographs in snow: three formats, two depths, names nobody likes."""
    folder = tmp_path_factory.mktemp("photographs")
    deep = folder / "a folder\nof two lines"
    deep.mkdir()
    china = datasets.load_sample_image("china.jpg")
    Image.fromarray(in_snow(data.astronaut()[:160, :200])).save(folder / "astronaut.png")
    Image.fromarray(in_snow(data.chelsea()[:150, :211])).save(folder / "chat [1] é.webp")
    Image.fromarray(in_snow(china[:130, :170])).save(deep / "china.jpg", quality=95)
    sixteen = np.pad(data.coffee()[:97, :65, 0].astype(np.uint16) * 257, 2)
    Image.fromarray(sixteen).save(deep / "gray.tif")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_a_folder_of_photographs_comes_out_as_it_went_in(
    photographs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out, report = tmp_path / "out", tmp_path / "report.json"
    done = clipweather(
        *("restore", photographs, "-o", out, "-n", checkpoint),
        *("--compare", "--json", report, "--fp32"),
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "4 restored (" in done.stderr
    deep = "a folder\nof two lines"
    names = ["astronaut.png", "chat [1] é.webp", f"{deep}/china.jpg", f"{deep}/gray.tif"]
    compared = [f"{name[:-4].rstrip('.')}_compare{Path(name).suffix}" for name in names]
    written = {str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()}
    assert written == {*names, *compared}

    restorer = Restorer(checkpoint, device="cpu", dtype="float32")
    for name in ("astronaut.png", f"{deep}/gray.tif"):
        before, after = read_picture(photographs / name), read_picture(out / name)
        expected = restorer(before)
        assert (after.mode, after.bits, after.format) == (before.mode, before.bits, before.format)
        # Another number of threads may round otherwise.
        levels = np.abs(after.pixels.astype(int) - expected.pixels).max() / 257 ** (after.bits > 8)
        assert levels <= 1
        assert np.abs(after.pixels.astype(int) - before.pixels).max() > 0
    assert read_picture(out / compared[0]).width == 2 * 200

    found = json.loads(report.read_text())
    assert (found["restored"], found["skipped"], found["failed"]) == (4, 0, 0)
    first = found["pictures"][0]
    assert first["output"] == str(out / "astronaut.png")
    assert (first["width"], first["height"], first["dtype"]) == (200, 160, "float32")
    assert first["seconds"] > 0


# ---- hostile files -------------------------------------------------------------------------------


def huge_header(path: Path) -> None:
    """A PNG of 60 bytes that claims 20,000 x 10,000 pixels."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", 20_000, 10_000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )


def test_hostile_files_are_named_and_the_rest_go_on(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    photograph = Image.fromarray(in_snow(data.rocket()[:60, :80]))
    photograph.save(folder / "good.png")
    photograph.resize((1, 1)).save(folder / "one pixel.png")
    photograph.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(np.full((9, 7), 40_000, np.uint16)).save(folder / "sixteen bits.png")
    content = (folder / "good.png").read_bytes()
    (folder / "truncated.png").write_bytes(content[: len(content) // 2])
    (folder / "zero.jpg").touch()
    (folder / "text\nof two lines.png").write_text("I am no picture")
    photograph.save(
        folder / "animated.gif", save_all=True, append_images=[Image.new("RGB", (80, 60))]
    )
    huge_header(folder / "huge.png")
    (folder / "loop.png").symlink_to("loop.png")
    (folder / "circle").symlink_to(".", target_is_directory=True)
    (folder / "blocked.png").write_bytes(content)
    (out / "blocked.png").mkdir(parents=True)  # where the output should go

    done = here("restore", folder, "-o", out, "-n", checkpoint)
    assert done.exit_code == 1
    lines = done.stderr.splitlines()
    assert lines[-1].startswith("4 restored, 7 failed (")
    bad = {
        "animated.gif": "holds 2 frames",
        "blocked.png": "directory",
        "huge.png": "20000 x 10000 pixels",
        "loop.png": "",
        r"text\nof two lines.png": "is not a picture",
        "truncated.png": "decoded",
        "zero.jpg": "is empty",
    }
    assert len(lines) == len(bad) + 1
    for name, reason in bad.items():
        (line,) = [line for line in lines if line.startswith(f"{folder}/{name}: ")]
        assert reason in line
    written = sorted(path.name for path in out.iterdir())
    good = ["cmyk.jpg", "good.png", "one pixel.png", "sixteen bits.png"]
    assert written == sorted([*good, "blocked.png"])
    assert all(is_whole(out / name) for name in good)
    with Image.open(out / "cmyk.jpg") as image:
        assert image.mode == "CMYK"


def test_what_is_left_out_and_pages_are_said_by_name(checkpoint: Path, tmp_path: Path) -> None:
    folder, out, report = tmp_path / "in", tmp_path / "out", tmp_path / "report.json"
    folder.mkdir()
    photograph = Image.fromarray(in_snow(data.rocket()[:60, :80]))
    photograph.save(folder / "phone.jpg", "MPO", save_all=True, append_images=[photograph])
    photograph.save(folder / "scan.tif", save_all=True, append_images=[photograph])
    photograph.save(folder / "whole.png")
    done = here("restore", folder, "-o", out, "-n", checkpoint, "--json", report)
    assert done.exit_code == 1
    assert f"{folder}/phone.jpg: left out 1 more picture behind the first" in done.stderr
    assert f"{folder}/scan.tif: holds 2 pages; split it into files of one picture" in done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("2 restored, 1 of them without all that their files hold, 1 failed (")
    found = {Path(one["input"]).name: one for one in json.loads(report.read_text())["pictures"]}
    assert "more picture" in found["phone.jpg"]["left_out"]
    assert found["whole.png"]["left_out"] is None
    assert "2 pages" in found["scan.tif"]["error"]


# ---- killed --------------------------------------------------------------------------------------


def test_a_killed_run_leaves_whole_files_and_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    """Killed, then interrupted where it went on, then left in peace."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    large = np.tile(data.astronaut(), (2, 1, 1))
    for number in range(16):
        Image.fromarray(np.roll(large, 7 * number, axis=1)).save(folder / f"{number:02}.bmp")
    arguments = ["restore", str(folder), "-o", str(out), "-n", str(checkpoint)]
    arguments += ["--ext", "png", "--device", "cpu", "--skip-existing"]
    left: list[Path] = []
    for killer in (signal.SIGKILL, signal.SIGINT):
        before = {path.name: path.stat().st_ino for path in left}
        said, code = killed([*COMMAND, *arguments], killer, out, len(before) + 3)
        left = pictures(out)
        assert len(before) + 3 <= len(left) < 16
        assert all(is_whole(path) for path in left)
        # Nothing else is there, except where a file system has no files without names.
        assert {path.suffix for path in out.iterdir()} <= {".png", ".part"}
        assert {name: (out / name).stat().st_ino for name in before} == before
    assert code == 130
    assert "interrupted: " in said
    assert "Traceback" not in said
    before = {path.name: path.stat().st_ino for path in left}
    done = here(*arguments)
    assert done.exit_code == 0, done.stderr
    assert f"{16 - len(left)} restored, {len(left)} skipped" in done.stderr
    assert len(pictures(out)) == 16
    assert {name: (out / name).stat().st_ino for name in before} == before


def killed(command: list[str], killer: signal.Signals, out: Path, count: int) -> tuple[str, int]:
    """What a command said that was killed once so many pictures were there, and its exit code."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 60
            while len(pictures(out)) < count:
                assert process.poll() is None, "it ended before it could be killed"
                assert time.monotonic() < deadline, "little was written in a minute"
                time.sleep(0.005)
            process.send_signal(killer)
            _, said = process.communicate(timeout=60)
        finally:
            process.kill()
    return said, process.returncode


def pictures(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.png")) if folder.is_dir() else []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_kill_and_a_closed_terminal_stop_it_as_control_c_does(
    number: signal.Signals, checkpoint: Path, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        os.kill(os.getpid(), number)
        time.sleep(10)

    monkeypatch.setattr(Run, "watch", killed)
    before = signal.signal(number, signal.SIG_DFL)  # nohup has the tests ignore SIGHUP
    try:
        code, said = run("in", "-o", "out", "-n", checkpoint, "--json", "report.json")
        assert signal.getsignal(number) == signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert code == 128 + number
    assert "interrupted: 0 restored" in said
    assert json.loads(Path("report.json").read_text())["interrupted"] is True


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stoppable():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


# ---- what the options mean -----------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with two small pictures in ``in``."""
    monkeypatch.chdir(tmp_path)
    Path("in").mkdir()
    for name in ("a", "b"):
        Image.fromarray(in_snow(data.coffee()[:40, :50])).save(f"in/{name}.png")
    return tmp_path


def run(*arguments: str | Path) -> tuple[int, str]:
    """The command inside this process: its exit code, and what it said."""
    result = CliRunner().invoke(app, ["restore", *map(str, arguments)], prog_name="clipweather")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, words(result.output)


@pytest.mark.parametrize(
    ("options", "named", "reason"),
    [
        (("in/none.png", "-o", "out"), "'--input' / '-i'", "in/none.png does not exist"),
        (("-o", "out"), "'--input' / '-i'", "no input was given"),
        (("in",), "--output", "Missing option"),
        (("in", "-o", "in"), "'--output' / '-o'", "overwrite the input"),
        (("in", "in/../in/a.png", "-o", "x.png"), "'--output' / '-o'", "names one picture"),
        (("in", "-o", "in/a.png/out"), "'--output' / '-o'", "in/a.png"),
        (("in", "-o", "out", "--tile", "big"), "'--tile' / '-t'", "neither 'auto' nor a number"),
        (("in", "-o", "out", "-t", "64", "--tile-overlap", "64"), "'--tile-overlap'", "64 pixels"),
        (("in", "-o", "out", "--device", "abacus"), "'--device'", "none of auto, cpu"),
        (("in", "-o", "out", "--gpu", "99"), "'--gpu' / '-g'", "cuda:99 is not there"),
        (("in", "-o", "out", "-g", "0", "--device", "cpu"), "'--gpu' / '-g'", "two devices"),
        (("in", "-o", "out", "--fp32", "--dtype", "bfloat16"), "'--fp32'", "contradict"),
        (("in", "-o", "out", "--dtype", "float8"), "'--dtype'", "float8"),
        (("in", "-o", "out", "--shard", "3/2"), "'--shard'", "1 <= i <= n"),
        (("in", "-o", "out", "--ext", "xcf"), "'--ext'", "'xcf' is none of auto, png"),
        (("in", "-o", "out", "--suffix", "/../x"), "'--output' / '-o'", "suffix"),
        (("in", "-o", "out", "--threads", "0"), "'--threads'", "1"),
        (("in", "-o", "out", "-n", "clipweather_bse"), "'--model' / '-n'", "clipweather_base"),
        (("in", "-o", "out", "-n", "clipweather_base"), "'--model' / '-n'", "no weights come"),
        (("in", "-o", "out", "-n", "a/b.pth"), "'--model' / '-n'", "no file or folder a/b.pth"),
        (("in", "-o", "out", "-n", "in/a.png"), "'--model' / '-n'", "cannot be read"),
        (("in", "-o", "out", "--json", "in/a.png/r.json"), "'--json'", "in/a.png"),
        (("in", "-o", "out", "--json", "in/../in/b.png"), "'--json'", "is a picture's file"),
        (("in", "-o", "out", "--json", "out/b.png"), "'--json'", "is a picture's file"),
        (("x" * 300, "-o", "out"), "'--input' / '-i'", "File name too long"),
        (("in", "-o", "x" * 300), "'--output' / '-o'", "File name too long"),
    ],
)
def test_wrong_options_exit_2_and_are_named(
    options: tuple[str, ...], named: str, reason: str, small: Path
) -> None:
    code, said = run(*options)
    assert code == 2
    assert named in said
    assert reason in said
    assert sorted(str(path) for path in Path().rglob("*.png")) == ["in/a.png", "in/b.png"]


def test_the_letters_of_real_esrgan(checkpoint: Path, small: Path) -> None:
    code, said = run(
        *("-i", "in/a.png", "-i", "in/b.png", "-o", "out", "-n", checkpoint, "-t", "64"),
        *("--tile-overlap", "16", "--fp32", "--suffix", "_clear", "--ext", "JPG"),
    )
    assert code == 0, said
    assert sorted(os.listdir("out")) == ["a_clear.jpg", "b_clear.jpg"]


def test_one_picture_to_a_name_of_its_own(checkpoint: Path, small: Path) -> None:
    assert run("in/a.png", "-o", "clear/x.webp", "-n", checkpoint)[0] == 0
    assert os.listdir("clear") == ["x.webp"]


def test_an_input_is_overwritten_when_asked(checkpoint: Path, small: Path) -> None:
    before = Path("in/a.png").read_bytes()
    assert run("in/a.png", "-o", "in", "-n", checkpoint, "--overwrite-inputs")[0] == 0
    assert Path("in/a.png").read_bytes() != before
    assert sorted(os.listdir("in")) == ["a.png", "b.png"]


def test_an_output_inside_the_input_and_two_runs(checkpoint: Path, small: Path) -> None:
    for _ in range(2):
        assert run("in", "-o", "in/out", "-n", checkpoint)[0] == 0
    assert sorted(os.listdir("in/out")) == ["a.png", "b.png"]


def test_shards_do_everything_once(checkpoint: Path, small: Path) -> None:
    for part in ("1/2", "2/2"):
        assert "1 restored (" in run("in", "-o", "out", "-n", checkpoint, "--shard", part)[1]
    assert sorted(os.listdir("out")) == ["a.png", "b.png"]


def test_a_checkpoint_file_without_a_configuration(small: Path) -> None:
    import torch

    from clipweather_fast.models import create_model

    state = create_model("clipweather_tiny").state_dict()
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}}, "model.pth")
    assert run("in/a.png", "-o", "out", "-n", "model.pth")[0] == 0
    torch.save({"weight": torch.zeros(1)}, "other.pth")
    code, said = run("in/a.png", "-o", "out", "-n", "other.pth")
    assert code == 2
    assert "other.pth fits none of clipweather_base" in said
