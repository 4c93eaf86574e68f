"""``clipweather eval`` as a stranger runs it: datasets, folders, shards, bad files, and killed."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from clipweather_fast.cli import app
from clipweather_fast.evaluation import psnr, ssim
from command import COMMAND, clipweather, in_snow, words

data = pytest.importorskip("skimage.data", reason="scikit-image brings the photographs")

PHOTOGRAPHS = {"snow": ("astronaut", "chelsea"), "raindrop": ("coffee", "rocket")}


def write_photographs(root: Path, size: tuple[int, int] = (64, 80)) -> Path:
    """``<weather>/input`` and ``<weather>/gt`` of four photographs."""
    for seed, (weather, names) in enumerate(PHOTOGRAPHS.items()):
        for place in ("input", "gt"):
            (root / weather / place).mkdir(parents=True)
        for name in names:
            clear = getattr(data, name)()[: size[0], : size[1]]
            Image.fromarray(clear).save(root / weather / "gt" / f"{name} 1.png")
            Image.fromarray(in_snow(clear, seed)).save(root / weather / "input" / f"{name} 1.png")
    return root


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Commands that run in this process choose their number of threads."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photographs(tmp_path_factory.mktemp("photographs"))


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "pictures.csv", newline="") as file:
        return list(csv.DictReader(file))


def run(*arguments: str | Path) -> Any:
    """The command in this process: no second for another interpreter."""
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_a_dataset_is_restored_scored_and_saved(
    photographs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    out, saved = tmp_path / "out", tmp_path / "saved"
    options = ["-n", checkpoint, "-p", "paper,rgb", "-p", "y_matlab", "--processes", "2"]
    done = clipweather("eval", photographs, *options, "-o", out, "--save", saved)
    assert done.returncode == 0, done.stderr
    assert "4 scored (" in done.stderr
    for protocol in ("paper", "rgb", "y_matlab"):
        assert f"protocol {protocol}: " in done.stdout
    assert "raindrop" in done.stdout
    assert "mean of weathers" in done.stdout
    names = {"pictures.csv", "summary.json", "scored-1-of-1.jsonl", "worst.png", "best.png"}
    assert {path.name for path in out.iterdir()} == names
    found = rows(out)
    assert [row["name"] for row in found] == [
        *("raindrop/input/coffee 1.png", "raindrop/input/rocket 1.png"),
        *("snow/input/astronaut 1.png", "snow/input/chelsea 1.png"),
    ]
    for row in found:
        truth = photographs / row["name"].replace("input", "gt")
        for protocol in ("paper", "rgb", "y_matlab"):
            assert float(row[f"psnr_{protocol}"]) == psnr(saved / row["name"], truth, protocol)
            assert float(row[f"ssim_{protocol}"]) == ssim(saved / row["name"], truth, protocol)
            before = psnr(photographs / row["name"], truth, protocol)
            assert float(row[f"input_psnr_{protocol}"]) == before
    summary = json.loads((out / "summary.json").read_text())
    mean = math.fsum(float(row["psnr_paper"]) for row in found) / 4
    assert summary["means"]["paper"]["all pictures"]["psnr"] == mean
    assert f"{mean:.2f}" in done.stdout
    assert summary["settings"]["model"] == str(checkpoint)
    assert len(summary["settings"]["weights"]) == 16
    assert summary["settings"]["threads"] == 1

    # The saved pictures scored as a folder, and as two folders, give the same figures.
    again = run(photographs, "--restored", saved, *options[2:6], "-o", tmp_path / "again")
    assert again.exit_code == 0, again.output
    figures = [n for n in found[0] if n.endswith(("_paper", "_rgb", "_y_matlab"))]
    assert [[row[n] for n in figures] for row in rows(tmp_path / "again")] == [
        [row[n] for n in figures] for row in found
    ]
    two = run(saved / "snow/input", photographs / "snow/gt", "-o", tmp_path / "two", "-p", "paper")
    assert two.exit_code == 0, two.output
    assert [row["psnr_paper"] for row in rows(tmp_path / "two")] == [
        row["psnr_paper"] for row in found[2:]
    ]
    assert {row["weather"] for row in rows(tmp_path / "two")} == {""}
    assert {row["gain_paper"] for row in rows(tmp_path / "two")} == {""}


def test_shards_give_the_files_of_one_run(
    photographs: Path, checkpoint: Path, tmp_path: Path
) -> None:
    options = [photographs, "-n", checkpoint, "--threads", "1", "--processes", "1"]
    assert run(*options, "-o", tmp_path / "whole").exit_code == 0
    first = run(*options, "-o", tmp_path / "split", "--shard", "1/2")
    assert first.exit_code == 0
    assert "2 of 4 pictures are left to other shards" in words(first.stderr)
    assert not (tmp_path / "split/summary.json").exists()
    second = run(*options, "-o", tmp_path / "split", "--shard", "2/2")
    assert second.exit_code == 0
    assert "left to other shards" not in second.stderr
    for name in ("pictures.csv", "summary.json", "worst.png", "best.png"):
        assert (tmp_path / "split" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    # The same command again knows all of it.
    again = run(*options, "-o", tmp_path / "split")
    assert "0 scored, 4 known from before" in again.stderr
    assert again.stdout == second.stdout
    other = run(*options, "-o", tmp_path / "split", "-p", "rgb")
    assert other.exit_code == 2
    assert "--restart" in other.output
    assert run(*options, "-o", tmp_path / "split", "-p", "rgb", "--restart").exit_code == 0


def test_a_killed_run_goes_on(checkpoint: Path, tmp_path: Path) -> None:
    folder, out = tmp_path / "data", tmp_path / "out"
    for place in ("input", "gt"):
        (folder / "snow" / place).mkdir(parents=True)
    clear = data.chelsea()[:128, :160]
    for number in range(40):
        Image.fromarray(clear).save(folder / f"snow/gt/{number}.png")
        Image.fromarray(in_snow(clear, number)).save(folder / f"snow/input/{number}.png")
    options = ["eval", str(folder), "-n", str(checkpoint), "-o", str(out), "--processes", "1"]
    for ending in (signal.SIGKILL, signal.SIGINT):
        journal = out / "scored-1-of-1.jsonl"
        before = journal.read_bytes().count(b"\n") if journal.exists() else 0
        with subprocess.Popen([*COMMAND, *options], stderr=subprocess.PIPE) as process:
            try:
                deadline = time.monotonic() + 90
                while not (journal.exists() and journal.read_bytes().count(b"\n") > before + 4):
                    assert process.poll() is None, "it ended before it could be killed"
                    assert time.monotonic() < deadline, "little was scored in a minute and a half"
                    time.sleep(0.01)
                process.send_signal(ending)
                _, errors = process.communicate(timeout=60)
            finally:
                process.kill()
        if ending == signal.SIGINT:
            assert process.returncode == 130, errors
            assert b"the same command goes on from there" in errors
            assert b"Traceback" not in errors
    assert not (out / "summary.json").exists()
    done = run(*options[1:])
    assert done.exit_code == 0, done.stderr
    assert "known from before" in done.stderr
    whole = run(*options[1:-3], tmp_path / "whole", *options[-2:])
    assert whole.exit_code == 0, whole.stderr
    same = ("pictures.csv", "summary.json")
    assert [(out / n).read_bytes() for n in same] == [
        (tmp_path / "whole" / n).read_bytes() for n in same
    ]


def test_bad_pictures_are_named_and_the_rest_go_on(checkpoint: Path, tmp_path: Path) -> None:
    folder = write_photographs(tmp_path / "data")
    (folder / "snow/gt/astronaut 1.png").unlink()
    Image.new("RGB", (81, 64)).save(folder / "snow/gt/chelsea 1.png")
    (folder / "raindrop/input/rocket 1.png").write_bytes(b"\x89PNG but not really")
    done = run(folder, "-n", checkpoint, "-o", tmp_path / "out", "--processes", "1")
    assert done.exit_code == 1
    errors = done.stderr.splitlines()
    assert len(errors) == 4
    assert errors[-1].startswith("1 scored, 3 failed (")
    for name, reason in (
        ("astronaut 1.png", "truth"),
        ("chelsea 1.png", "80 x 64 pixels and its truth"),
        ("rocket 1.png", "is not a picture"),
    ):
        (line,) = [line for line in errors if name in line]
        assert reason in line
    assert [row["error"] != "" for row in rows(tmp_path / "out")].count(True) == 3
    assert len(json.loads((tmp_path / "out/summary.json").read_text())["failed"]) == 3


def test_two_folders_with_lonely_and_identical_pictures(tmp_path: Path) -> None:
    restored, truth, degraded = (tmp_path / name for name in ("restored", "truth", "input"))
    clear = data.coffee()[:40, :50]
    for folder in (restored, truth, degraded):
        folder.mkdir()
        for name in ("same.png", "other.png"):
            Image.fromarray(clear).save(folder / name)
    Image.fromarray(in_snow(clear)).save(degraded / "same.png")
    Image.fromarray(in_snow(clear)).save(restored / "other.png")
    Image.fromarray(clear).save(truth / "lonely.png")
    done = run(restored, truth, "--input", degraded, "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert "truth/lonely.png: the truth has no partner in" in done.stderr
    text = words(done.stdout)
    assert "1 of 2 restored pictures equal the truth under this protocol" in text
    assert "1 of 2 degraded pictures equal the truth under this protocol" in text
    by_name = {row["name"]: row for row in rows(tmp_path / "out")}
    assert by_name["same.png"]["psnr_paper"] == "inf"
    assert by_name["other.png"]["input_psnr_paper"] == "inf"
    assert by_name["same.png"]["gain_paper"] == by_name["other.png"]["gain_paper"] == ""
    one = run(restored / "same.png", truth / "other.png")
    assert one.exit_code == 0
    assert "inf" in one.stdout


def test_wrong_options_are_named(photographs: Path, checkpoint: Path, tmp_path: Path) -> None:
    def refused(*arguments: str | Path) -> str:
        done = run(*arguments)
        assert done.exit_code == 2, done.output
        return words(done.stderr)

    assert "does not exist" in refused(tmp_path / "nowhere")
    assert "'psnr' is none of paper, rgb" in refused(photographs, "-p", "psnr")
    assert "needs --output" in refused(photographs, "--shard", "1/2")
    assert "nothing is restored" in refused(photographs, photographs, "--save", tmp_path)
    assert "it needs TRUTH" in refused(photographs, "--input", photographs)
    assert "holds no pairs" in refused(tmp_path)
    assert "no picture in the folder" in refused(tmp_path, photographs)
    assert "there is no file or folder" in refused(photographs, "-n", tmp_path / "network")


def test_a_folder_that_cannot_be_written_is_named(photographs: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(photographs / "snow/gt", photographs / "snow/gt", "-o", tmp_path / "file/out")
    assert done.exit_code == 1
    assert "clipweather eval: " in done.stderr
    assert os.fspath(tmp_path / "file") in words(done.stderr)
