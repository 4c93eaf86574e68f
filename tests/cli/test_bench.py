"""``clipweather bench``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from clipweather_fast import speed
from clipweather_fast.cli import app
from clipweather_fast.speed import Case, Row, Times, WrongPicture
from command import clipweather, words

QUICK = ("--size", "64x48", "-n", "clipweather_tiny", "--seconds", "1", "--device", "cpu")


def test_a_table_and_a_report(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    done = clipweather("bench", *QUICK, "--threads", "1", "--dtype", "float32", "--json", report)
    assert done.returncode == 0, done.stderr
    head, _, columns, line = done.stdout.splitlines()
    assert "1 thread, float32" in head
    assert columns.split() == ["pictures/s", "plain", "PyTorch", "faster"]
    assert line.startswith("clipweather_tiny    64 x 48 ")
    found = json.loads(report.read_text())
    assert (found["threads"], found["dtype"], found["interrupted"]) == (1, "float32", False)
    (case,) = found["cases"]
    assert (case["width"], case["height"]) == (64, 48)
    assert case["pictures_per_s"] == pytest.approx(1 / case["fast_s"])
    assert case["largest_difference"] <= 1e-3


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--model", "clipwether_tiny"), "did you mean 'clipweather_tiny'?"),
        (("--size", "640"), "'640' is not WIDTHxHEIGHT in pixels"),
        (("--size", "0x4"), "'0x4' is not WIDTHxHEIGHT in pixels"),
        (("--device", "tpu"), "--device"),
        (("--device", "cuda:77"), "cuda:77 is not there"),
        (("--dtype", "int8"), "--dtype"),
        (("--json", "no-such-folder/report.json"), "--json"),
        (("--threads", "0"), "--threads"),
        (("--seconds", "-1"), "--seconds"),
    ],
)
def test_a_wrong_option_is_named(arguments: tuple[str, ...], named: str) -> None:
    done = CliRunner().invoke(app, ["bench", *arguments])
    assert done.exit_code == 2
    assert named in words(done.stderr)


def rows(end: BaseException | None) -> Any:
    """What takes the place of the measurements: two rows, then how they end."""

    def measured(
        cases: list[Case], device: torch.device, dtype: torch.dtype, seconds: float
    ) -> Iterator[Row]:
        yield Row(cases[0], "float32", Times((0.25,)), Times((0.5,)), 1e-6)
        yield Row(cases[1], "float32", reason="it would take about 90 s")
        if end is not None:
            raise end

    return measured


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        (None, 0, ""),
        (KeyboardInterrupt(), 130, ""),
        (WrongPicture("a at 3 x 4: they differ"), 1, "clipweather bench: a at 3 x 4: they differ"),
    ],
    ids=["whole", "stopped", "wrong"],
)
def test_what_was_measured_is_shown_however_it_ends(
    end: BaseException | None,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(speed, "measured", rows(end))
    report = tmp_path / "report.json"
    done = CliRunner().invoke(app, ["bench", "--json", str(report)])
    assert done.exit_code == code
    lines = done.stdout.splitlines()
    assert lines[3].split() == ["clipweather_tiny", "256", "x", "256", "4", "2", "2.00", "x"]
    assert "left out: it would take about 90 s" in lines[4]
    assert (lines[-1] == "interrupted") == (code == 130)
    assert said in done.stderr
    found = json.loads(report.read_text())
    assert found["interrupted"] == (code == 130)
    assert [case.get("left_out") for case in found["cases"]] == [None, "it would take about 90 s"]
