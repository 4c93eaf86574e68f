"""The journal: killed in mid-line, read by others, refused when the settings differ."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from clipweather_fast.evaluation import Case, JournalError, Record, Score
from clipweather_fast.evaluation.records import Journal

SETTINGS = {"model": "m", "protocols": ["paper"], "config": {"dims": (1, 2)}}
RECORD = Record(
    *("snow/é\udcff.png", "snow", None, 60, 40, 512, 0.25),
    scores={"paper": Score("paper", math.inf, 1.0)},
    before={"paper": Score("paper", 100 / 3, 0.1 + 0.2)},
)


def case(tmp_path: Path) -> Case:
    truth = tmp_path / "truth.png"
    truth.write_bytes(b"12345")
    return Case(RECORD.name, truth)


def test_records_come_back_to_the_last_bit(tmp_path: Path) -> None:
    one, folder = case(tmp_path), tmp_path / "out"
    with Journal(folder, SETTINGS) as journal:
        assert journal.known(one) is None
        journal.append(RECORD, one)
        assert journal.known(one) == RECORD
    assert Journal(folder, SETTINGS).known(one) == RECORD
    for line in (folder / "scored-1-of-1.jsonl").read_bytes().splitlines():
        json.loads(line, parse_constant=pytest.fail)  # JSON has no Infinity


def test_a_replaced_file_is_scored_again(tmp_path: Path) -> None:
    one, folder = case(tmp_path), tmp_path / "out"
    with Journal(folder, SETTINGS) as journal:
        journal.append(RECORD, one)
    (tmp_path / "truth.png").write_bytes(b"123456")
    assert Journal(folder, SETTINGS).known(one) is None
    (tmp_path / "truth.png").unlink()
    assert Journal(folder, SETTINGS).known(one) is None


def test_half_a_line_does_not_count_and_is_cut_off(tmp_path: Path) -> None:
    one, folder = case(tmp_path), tmp_path / "out"
    two = replace(one, name="two")
    with Journal(folder, SETTINGS) as journal:
        journal.append(RECORD, one)
    path = folder / "scored-1-of-1.jsonl"
    whole = path.read_bytes()
    second = replace(RECORD, name="two")
    line = second.line(two.sizes).encode()
    for length in (1, len(line) // 2, len(line) - 1):
        path.write_bytes(whole + line[:length])
        with Journal(folder, SETTINGS) as journal:
            assert journal.known(one) == RECORD
            assert journal.known(two) is None
            journal.append(second, two)
        assert path.read_bytes() == whole + line
    for length in range(0, whole.index(b"\n") + 1, 7):  # killed while the settings were written
        path.write_bytes(whole[:length])
        with Journal(folder, SETTINGS) as journal:
            assert journal.known(one) is None
            journal.append(RECORD, one)
        assert Journal(folder, SETTINGS).known(one) == RECORD
        assert path.read_bytes() == whole


def test_all_shards_are_read_and_success_beats_failure(tmp_path: Path) -> None:
    one, folder = case(tmp_path), tmp_path / "out"
    failed = replace(RECORD, error="memory ran out", scores={}, before={})
    with (
        Journal(folder, SETTINGS, (2, 2)) as second,
        Journal(folder, SETTINGS, (1, 2)) as first,
    ):
        second.append(RECORD, one)
        first.append(failed, one)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("scored-1-of-2.jsonl", "scored-2-of-2.jsonl")
    ]
    assert Journal(folder, SETTINGS).known(one) == RECORD
    with Journal(folder, SETTINGS, restart=True) as journal:
        assert journal.known(one) is None
    assert list(folder.iterdir()) == []


def test_other_settings_are_refused(tmp_path: Path) -> None:
    one, folder = case(tmp_path), tmp_path / "out"
    with Journal(folder, SETTINGS) as journal:
        journal.append(RECORD, one)
    with pytest.raises(JournalError, match=r"model = 'm', this run has 'other'.*another folder"):
        Journal(folder, SETTINGS | {"model": "other"})
    with pytest.raises(JournalError, match="tile = None, this run has 512"):
        Journal(folder, SETTINGS | {"tile": 512})
    (folder / "scored-1-of-1.jsonl").write_text('{"settings": 1}\n')
    with pytest.raises(JournalError, match="line 1: is no record"):
        Journal(folder, SETTINGS)
    (folder / "scored-1-of-1.jsonl").write_text("no JSON\n")
    with pytest.raises(JournalError, match="line 1: is no record"):
        Journal(folder, SETTINGS)


def test_gains_are_finite_or_none() -> None:
    assert RECORD.gain("paper") is None
    assert RECORD.gain("rgb") is None
    finite = replace(RECORD, scores={"paper": Score("paper", 34.0, 0.9)})
    assert finite.gain("paper") == pytest.approx(34 - 100 / 3)
    assert replace(finite, before={}).gain("paper") is None
