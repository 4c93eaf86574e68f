"""Datasets of synthesised pairs: what is written, what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from typer.testing import CliRunner

from clipweather_fast.cli.synth import synth
from clipweather_fast.contact_sheet import contact_sheet
from clipweather_fast.data.synthesis import degrade
from clipweather_fast.data.synthesis.dataset import RECORD, SHEET, Settings, write_dataset
from command import words


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A folder with an RGB PNG, a gray JPEG, and a 16-bit file in a folder of its own."""
    folder = tmp_path / "photographs"
    (folder / "more").mkdir(parents=True)
    rows = np.linspace(0, 255, 48, dtype=np.uint8)[:, None].repeat(64, 1)
    Image.fromarray(np.stack([rows, rows[::-1], rows * 0 + 90], -1)).save(folder / "a b.png")
    Image.fromarray(rows).save(folder / "gray.jpg")
    Image.fromarray(rows.astype(np.uint16) * 257).save(folder / "more" / "deep.png")
    return folder


def pixels(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image)


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def test_a_dataset_has_pairs_a_record_and_a_contact_sheet(
    photographs: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = write_dataset([str(photographs)], out, Settings(seed=3), workers=2)
    assert (report.written, report.kept, report.failed) == (9, 0, {})
    names = {"a b.png", "gray.png", "more_deep.png"}
    for weather in ("snow", "rain", "raindrop"):
        for part in ("input", "gt"):
            assert {path.name for path in (out / weather / part).iterdir()} == names
    truth = pixels(out / "snow/gt/a b.png")
    np.testing.assert_array_equal(truth, pixels(photographs / "a b.png"))
    record = json.loads((out / RECORD).read_text())
    assert record["settings"]["seed"] == 3
    assert len(record["pictures"]) == 9
    entry = next(p for p in record["pictures"] if p["input"] == "snow/input/a b.png")
    assert entry["gt"] == "snow/gt/a b.png"
    assert (entry["height"], entry["width"], entry["weather"]) == (48, 64, "snow")
    assert len(entry["parameters"]["layers"]) == 4
    # The record's seed makes the input again, and its PSNR is that of the files.
    clean = torch.from_numpy(truth.astype(np.float32) / 255).permute(2, 0, 1)[None]
    again = (degrade(clean, ["snow"], [entry["seed"]]) * 255).round()[0].permute(1, 2, 0)
    seen = pixels(out / "snow/input/a b.png")
    np.testing.assert_array_equal(seen, again.numpy().astype(np.uint8))
    error = np.mean((seen / 255.0 - truth / 255.0) ** 2)
    assert entry["psnr_rgb"] == pytest.approx(-10 * np.log10(error), abs=2e-3)
    with Image.open(out / SHEET) as sheet:
        assert sheet.width > 4 * 64
        assert sheet.height > 3 * 48


def test_the_same_settings_give_the_same_files_and_others_do_not(
    photographs: Path, tmp_path: Path
) -> None:
    settings = Settings(seed=1, weathers=("rain",), variations=2)
    for name, workers in (("one", 1), ("two", 3)):
        write_dataset([str(photographs)], tmp_path / name, settings, workers=workers)
    assert files(tmp_path / "one") == files(tmp_path / "two")
    one = pixels(tmp_path / "one/rain/input/gray_0.png")
    assert (one != pixels(tmp_path / "one/rain/input/gray_1.png")).any()
    write_dataset([str(photographs)], tmp_path / "three", Settings(2, ("rain",), 2))
    assert (one != pixels(tmp_path / "three/rain/input/gray_0.png")).any()


def test_a_run_goes_on_where_it_was(photographs: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole", tmp_path / "part"
    settings = Settings(weathers=("snow", "raindrop"))
    write_dataset([str(photographs)], whole, settings)
    write_dataset([str(photographs / "gray.jpg")], part, settings)
    kept = part / "snow/input/gray.png"
    stamp = kept.stat().st_mtime_ns
    # As after a kill: a truth without its input, and no contact sheet.
    (part / "raindrop/input/gray.png").unlink()
    (part / SHEET).unlink()
    report = write_dataset([str(photographs)], part, settings)
    assert (report.written, report.kept) == (5, 1)
    assert kept.stat().st_mtime_ns == stamp
    assert files(part) == files(whole)


def test_a_damaged_pair_is_made_again(photographs: Path, tmp_path: Path) -> None:
    settings = Settings(weathers=("snow",))
    write_dataset([str(photographs)], tmp_path / "out", settings)
    before = files(tmp_path / "out")
    (tmp_path / "out/snow/input/gray.png").write_bytes(b"\x89PNG broken")
    report = write_dataset([str(photographs)], tmp_path / "out", settings)
    assert (report.written, report.kept) == (1, 2)
    assert files(tmp_path / "out") == before


def test_folders_of_others_are_left_alone(photographs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    write_dataset([str(photographs)], out, Settings(weathers=("snow",)))
    before = files(out)
    with pytest.raises(ValueError, match="was written with seed 0 instead of 1"):
        write_dataset([str(photographs)], out, Settings(seed=1, weathers=("snow",)))
    (tmp_path / "mine/rain").mkdir(parents=True)
    with pytest.raises(ValueError, match="choose a new folder"):
        write_dataset([str(photographs)], tmp_path / "mine")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / RECORD).write_text("[]")
    with pytest.raises(ValueError, match="not a record"):
        write_dataset([str(photographs)], tmp_path / "bad")
    assert files(out) == before
    with pytest.raises(ValueError, match="does not exist"):
        write_dataset([str(tmp_path / "nowhere")], tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_photographs_of_one_name_are_refused(photographs: Path, tmp_path: Path) -> None:
    (photographs / "more" / "x.png").write_bytes((photographs / "a b.png").read_bytes())
    (photographs / "more_x.png").write_bytes((photographs / "a b.png").read_bytes())
    with pytest.raises(ValueError, match=r"would both be called more_x\.png"):
        write_dataset([str(photographs)], tmp_path / "out")


def test_large_photographs_are_scaled_down(photographs: Path, tmp_path: Path) -> None:
    settings = Settings(weathers=("snow",), longest=32)
    write_dataset([str(photographs / "a b.png")], tmp_path / "out", settings)
    assert pixels(tmp_path / "out/snow/gt/a b.png").shape == (24, 32, 3)
    assert pixels(tmp_path / "out/snow/input/a b.png").shape == (24, 32, 3)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weathers": ()}, "weathers"),
        ({"weathers": ("fog",)}, "weathers"),
        ({"variations": 0}, "variations"),
        ({"strength": -1.0}, "strength"),
        ({"longest": 0}, "longest"),
    ],
)
def test_settings_check_themselves(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Settings(**options)


# ---- the command ---------------------------------------------------------------------------------


def run(*arguments: object) -> tuple[int, str]:
    application = typer.Typer()
    application.command()(synth)
    threads = torch.get_num_threads()
    try:
        done = CliRunner().invoke(application, [str(argument) for argument in arguments])
    finally:
        torch.set_num_threads(threads)
    return done.exit_code, words(done.output)


def test_the_command_writes_names_the_bad_and_goes_on(photographs: Path, tmp_path: Path) -> None:
    (photographs / "broken.png").write_bytes(b"not a picture")
    out = tmp_path / "out"
    code, printed = run(photographs, "-o", out, "-w", "snow", "--variations", 2, "--workers", 2)
    assert code == 1
    assert "broken.png: " in printed
    assert "6 pairs written, 0 kept, 1 failed" in printed
    (photographs / "broken.png").unlink()
    code, printed = run(photographs, "-o", out, "-w", "snow", "--variations", 2)
    assert code == 0
    assert "0 pairs written, 6 kept, 0 failed" in printed
    assert sorted(path.name for path in out.iterdir()) == [SHEET, "snow", RECORD]
    code, printed = run(photographs, "-o", out, "-w", "rain")
    assert code == 2
    assert "was written with" in printed
    assert run(tmp_path / "nowhere", "-o", out)[0] == 2


# ---- contact sheets ------------------------------------------------------------------------------


def test_a_contact_sheet_shows_every_picture(tmp_path: Path) -> None:
    red = torch.zeros(3, 40, 60)
    red[0] = 1
    odd = torch.full((3, 300, 30), float("nan"), dtype=torch.float64)
    odd[1] = 7.0
    path = tmp_path / "sheet.png"
    contact_sheet([[red, odd], [red]], ["in", "out"], path, side=100, captions=["one", "two"])
    shown = pixels(path)
    assert (shown == (255, 0, 0)).all(-1).sum() == 2 * 40 * 60
    assert (shown == (0, 255, 0)).all(-1).sum() == 100 * 10
    assert list(tmp_path.iterdir()) == [path]


def test_contact_sheets_say_what_is_wrong(tmp_path: Path) -> None:
    picture = torch.zeros(3, 4, 4)
    for rows, headings, message in (
        ([], ["a"], "no picture"),
        ([[picture, picture]], ["a"], "needs as many headings"),
        ([[picture[0]]], ["a"], r"must be \(3, H, W\)"),
    ):
        with pytest.raises(ValueError, match=message):
            contact_sheet(rows, headings, tmp_path / "sheet.png")
    with pytest.raises(ValueError, match="captions"):
        contact_sheet([[picture]], ["a"], tmp_path / "sheet.png", captions=[])
    assert list(tmp_path.iterdir()) == []
