"""Reading, restoring and writing overlap, and nothing that fails stops the rest."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from clipweather_fast.restore.jobs import Job
from clipweather_fast.restore.picture import PictureError
from clipweather_fast.restore.pipeline import Outcome, Pipeline


def jobs(count: int, folder: Path, compare: bool = False) -> list[Job]:
    return [
        Job(Path(f"{n}.in"), folder / f"{n}", folder / f"{n}_compare" if compare else None)
        for n in range(count)
    ]


def read(path: Path) -> str:
    return path.stem


def write(text: str, path: Path) -> None:
    path.write_text(text)


def clear(texts: list[str]) -> list[str]:
    return [f"clear {text}" for text in texts]


def beside(before: str, after: str) -> str:
    return f"{before} | {after}"


def test_every_picture_is_restored_and_compared(tmp_path: Path) -> None:
    pipeline = Pipeline(read, clear, write, beside)
    outcomes = list(pipeline.run(jobs(9, tmp_path / "new", compare=True)))
    assert [outcome.status for outcome in outcomes] == ["restored"] * 9
    assert (tmp_path / "new/4").read_text() == "clear 4"
    assert (tmp_path / "new/4_compare").read_text() == "4 | clear 4"


def test_the_three_steps_overlap(tmp_path: Path) -> None:
    """Each step waits for another one to be under way, so a sequence of steps would never end."""
    reading, writing = threading.Event(), threading.Event()

    def read_slowly(path: Path) -> str:
        if path.stem == "2":
            reading.set()
        return path.stem

    def restore(texts: list[str]) -> list[str]:
        if texts == ["1"]:
            assert reading.wait(20), "picture 2 is not read while picture 1 is restored"
            assert writing.wait(20), "picture 0 is not written while picture 1 is restored"
        return texts

    def write_slowly(text: str, path: Path) -> None:
        writing.set()
        write(text, path)

    pipeline = Pipeline(read_slowly, restore, write_slowly, beside, workers=1)
    outcomes = list(pipeline.run(jobs(3, tmp_path)))
    assert [outcome.error for outcome in outcomes] == [None] * 3


@pytest.mark.parametrize("batch", [1, 8])
def test_what_waits_is_bounded(batch: int, tmp_path: Path) -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def counted_read(path: Path) -> str:
        count(1)
        return path.stem

    def slow_write(text: str, path: Path) -> None:
        time.sleep(0.002)
        count(-1)

    pipeline = Pipeline(
        counted_read, clear, slow_write, beside, alike=lambda _: "all", batch=batch, workers=2
    )
    assert len(list(pipeline.run(jobs(200, tmp_path)))) == 200
    assert alive == 0
    assert most <= 2 * 2 + batch - 1 + 2 * 2 + batch


def test_large_pictures_wait_in_smaller_numbers(tmp_path: Path) -> None:
    alive, most, lock = 0, 0, threading.Lock()

    def count(change: int) -> None:
        nonlocal alive, most
        with lock:
            alive += change
            most = max(most, alive)

    def counted_read(path: Path) -> str:
        count(1)
        return path.stem

    def slow_write(text: str, path: Path) -> None:
        time.sleep(0.002)
        count(-1)

    def run(size: int) -> int:
        nonlocal most
        most = 0
        pipeline = Pipeline(
            counted_read, clear, slow_write, beside, workers=16, size=lambda _: size, memory=1000
        )
        assert len(list(pipeline.run(jobs(100, tmp_path)))) == 100
        assert alive == 0
        return most

    assert run(400) <= 2 + 2 + 1
    assert run(1) > 16


@pytest.mark.parametrize("batch", [1, 4])
def test_a_bad_picture_is_named_and_the_rest_go_on(batch: int, tmp_path: Path) -> None:
    def bad_read(path: Path) -> str:
        if path.stem == "1":
            raise PictureError(path, "no picture")
        if path.stem == "2":
            raise FileNotFoundError(2, "No such file or directory", "2.in")
        return path.stem

    def bad_restore(texts: list[str]) -> list[str]:
        if "3" in texts:
            raise RuntimeError("the device is on fire")
        return texts

    def bad_write(text: str, path: Path) -> None:
        if text == "4":
            raise PermissionError(13, "Permission denied", str(path))
        write(text, path)

    pipeline = Pipeline(
        bad_read, bad_restore, bad_write, beside, alike=lambda text: "all", batch=batch
    )
    outcomes = {o.job.source.stem: o for o in pipeline.run(jobs(6, tmp_path))}
    assert {n: o.error for n, o in outcomes.items() if o.status == "failed"} == {
        "1": "no picture",
        "2": "No such file or directory",
        "3": "RuntimeError: the device is on fire",
        "4": f"{tmp_path / '4'}: Permission denied",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "5"]


def test_pictures_that_are_alike_and_ready_are_restored_together(tmp_path: Path) -> None:
    batches: list[list[str]] = []
    all_read = threading.Barrier(6, timeout=20)

    def read_together(path: Path) -> str:
        all_read.wait()
        time.sleep(0.2 if path.stem == "0" else 0)  # the others are decoded when the first is
        return path.stem

    def restore(texts: list[str]) -> list[str]:
        batches.append(texts)
        return texts

    pipeline = Pipeline(
        read_together,
        restore,
        write,
        beside,
        details=lambda text: {"name": text},
        alike=lambda text: text in "34",
        batch=2,
        workers=6,
    )
    outcomes = list(pipeline.run(jobs(6, tmp_path)))
    assert batches == [["0", "1"], ["2"], ["3", "4"], ["5"]]
    assert sorted(str(outcome.details["name"]) for outcome in outcomes) == list("012345")


def test_existing_outputs_are_skipped_without_being_read(tmp_path: Path) -> None:
    (tmp_path / "0").write_text("old")
    (tmp_path / "1").mkdir()  # no file: the attempt is made, and fails
    (tmp_path / "2").write_text("old")
    (tmp_path / "2_compare").write_text("old")
    (tmp_path / "3").touch()  # empty, as a crash leaves a file
    (tmp_path / "3_compare").write_text("old")

    read_names: list[str] = []

    def noted(path: Path) -> str:
        read_names.append(path.stem)
        return path.stem

    pipeline = Pipeline(noted, clear, write, beside)
    outcomes = list(pipeline.run(jobs(4, tmp_path, compare=True), skip_existing=True))
    statuses = {outcome.job.source.stem: outcome.status for outcome in outcomes}
    assert statuses == {"0": "restored", "1": "failed", "2": "skipped", "3": "restored"}
    assert "2" not in read_names


def test_stopping_finishes_what_is_being_written_and_drops_the_rest(tmp_path: Path) -> None:
    begun, finished = [], []

    def slow_write(text: str, path: Path) -> None:
        begun.append(text)
        time.sleep(0.05)
        finished.append(text)

    pipeline = Pipeline(read, clear, slow_write, beside, workers=2)

    def stop_after_one() -> None:
        with closing(pipeline.run(jobs(50, tmp_path))) as outcomes:
            for _ in outcomes:
                raise KeyboardInterrupt

    threads = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        stop_after_one()
    assert sorted(begun) == sorted(finished)
    assert len(finished) < 50
    assert threading.active_count() <= threads + 2  # a reader may still be on its way out


def test_an_outcome_says_how_long_the_network_took(tmp_path: Path) -> None:
    def slow(texts: list[str]) -> list[str]:
        time.sleep(0.02)
        return texts

    (outcome,) = Pipeline(read, slow, write, beside).run(jobs(1, tmp_path))
    assert isinstance(outcome, Outcome)
    assert 0.02 <= outcome.seconds < 5
