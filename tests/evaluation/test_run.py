"""Evaluations: what is scored is what is written, shards and resumed runs give the same figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipweather_fast.data import find_pairs
from clipweather_fast.evaluation import (
    PROTOCOLS,
    Evaluation,
    Record,
    cases_of_dataset,
    evaluate,
    score,
    weights_digest,
    with_restored,
    write_gallery,
)
from clipweather_fast.restore import Picture, Restorer
from command import restorer_with_one_thread, save_small_network

Restoring = Callable[[Picture], Picture]
BOTH = ("paper", "rgb")


def figures(evaluation: Evaluation) -> list[Record]:
    """The records without what a clock says."""
    return [replace(record, seconds=0.0) for record in evaluation.records]


def test_a_dataset_is_restored_and_scored(dataset: Path, restorer: Restoring) -> None:
    result = evaluate(restorer, find_pairs(dataset), BOTH, root=dataset)
    assert result.failed == []
    assert result.missing == 0
    by_name = {record.name: record for record in result.records}
    assert set(by_name) == {case.name for case in cases_of_dataset(dataset)}
    one = by_name["rain/input/b.png"]
    assert (one.weather, one.width, one.height, one.tile) == ("rain", 60, 40, None)
    truth, image = dataset / "rain/gt/b.png", dataset / one.name
    assert one.before == score(image, truth, BOTH)
    assert (one.gain("paper") or 0) > 3
    means = result.means("paper")
    assert list(means) == ["snow", "rain", "mean of weathers", "all pictures"]
    assert means["all pictures"].pictures == 5
    assert means["snow"].psnr > (means["snow"].input_psnr or math.inf)


def test_what_was_scored_is_what_was_saved(
    dataset: Path, restorer: Restoring, tmp_path: Path
) -> None:
    # Palettes, gray, and 16 bits: what PNG would change on the way is changed before it is scored.
    folder = dataset / "snow"
    palette = Image.open(folder / "input/a.png").convert("P", palette=Image.Palette.ADAPTIVE)
    palette.save(folder / "input/a.png")
    Image.open(folder / "input/c.png").convert("L").save(folder / "input/c.png")
    deep = np.asarray(Image.open(dataset / "rain/input/a.png").convert("L")).astype(np.uint16)
    Image.fromarray(deep * 257 + 100).save(dataset / "rain/input/a.png")
    Image.open(dataset / "rain/input/b.png").convert("1").save(dataset / "rain/input/b.png")
    cases = cases_of_dataset(dataset)
    saved = tmp_path / "saved"
    result = evaluate(restorer, cases, PROTOCOLS, save=saved)
    assert result.failed == []
    assert sorted(str(p.relative_to(saved)) for p in saved.rglob("*.png")) == sorted(
        str(Path(case.name).with_suffix(".png")) for case in cases
    )
    for case, record in zip(cases, result.records, strict=True):
        path = saved / Path(case.name).with_suffix(".png")
        assert record.scores == score(path, case.truth, PROTOCOLS), case.name
    again = evaluate(None, with_restored(cases, saved), PROTOCOLS)
    assert figures(again) == figures(result)


def test_the_restorer_itself_scores_like_its_files(dataset: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = Restorer(save_small_network(tmp_path / "network"), device="cpu", dtype="float32")
    cases = cases_of_dataset(dataset)
    result = evaluate(network, cases, ["paper"], save=tmp_path / "saved")
    for case, record in zip(cases, result.records, strict=True):
        path = tmp_path / "saved" / Path(case.name).with_suffix(".png")
        assert record.scores == score(path, case.truth, ["paper"])


def test_shards_put_together_are_the_whole(
    dataset: Path, restorer: Restoring, tmp_path: Path
) -> None:
    cases = cases_of_dataset(dataset)
    whole = evaluate(restorer, cases, BOTH, output=tmp_path / "whole")
    split = tmp_path / "split"
    first = evaluate(restorer, cases, BOTH, output=split, shard=(1, 2))
    assert (len(first.records), first.missing) == (3, 2)
    assert not (split / "summary.json").exists()
    second = evaluate(restorer, cases, BOTH, output=split, shard=(2, 2))
    assert second.missing == 0
    assert figures(second) == figures(whole)
    for name in ("pictures.csv", "summary.json"):
        assert (split / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_processes_give_the_same_figures(dataset: Path, tmp_path: Path) -> None:
    folder = save_small_network(tmp_path / "network")
    opener = partial(restorer_with_one_thread, folder)
    cases = cases_of_dataset(dataset)
    threads = torch.get_num_threads()
    try:
        alone = evaluate(opener(), cases, BOTH)
        together = evaluate(opener(), cases, BOTH, processes=2, open_restorer=opener)
    finally:
        torch.set_num_threads(threads)
    assert figures(together) == figures(alone)
    assert not alone.failed


def test_a_process_that_cannot_begin_is_an_error(dataset: Path) -> None:
    cases = cases_of_dataset(dataset)
    opener = partial(Restorer, dataset / "no network")
    seen: list[Record] = []
    with pytest.raises(RuntimeError, match="could not open the network"):
        evaluate(
            *(lambda picture: picture, cases),
            processes=2,
            open_restorer=opener,
            progress=lambda record, known: seen.append(record),
        )
    assert seen == []  # no picture is blamed
    with pytest.raises(ValueError, match="need open_restorer"):
        evaluate(lambda picture: picture, cases, processes=2)


def test_an_interrupted_run_goes_on(dataset: Path, restorer: Restoring, tmp_path: Path) -> None:
    cases = cases_of_dataset(dataset)
    whole = evaluate(restorer, cases, BOTH)
    seen = 0

    def interrupted(record: Record, known: bool) -> None:
        nonlocal seen
        seen += 1
        if seen == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(restorer, cases, BOTH, output=tmp_path, progress=interrupted)
    assert not (tmp_path / "summary.json").exists()
    computed = []

    def counted(picture: Picture) -> Picture:
        computed.append(picture.path)
        return restorer(picture)

    calls: list[bool] = []
    result = evaluate(
        *(counted, cases, BOTH), output=tmp_path, progress=lambda record, known: calls.append(known)
    )
    assert figures(result) == figures(whole)
    assert calls == [True, True, False, False, False]
    assert len(computed) == 3
    evaluate(counted, cases, BOTH, output=tmp_path)
    assert len(computed) == 3
    evaluate(counted, cases, BOTH, output=tmp_path, restart=True)
    assert len(computed) == 8


def test_pictures_that_were_not_saved_are_restored_again(
    dataset: Path, restorer: Restoring, tmp_path: Path
) -> None:
    cases = cases_of_dataset(dataset)
    evaluate(restorer, cases, output=tmp_path / "out", save=tmp_path / "saved")
    lost = tmp_path / "saved/snow/input/c.png"
    lost.unlink()
    known: list[bool] = []
    evaluate(
        *(restorer, cases),
        output=tmp_path / "out",
        save=tmp_path / "saved",
        progress=lambda record, before: known.append(before),
    )
    assert lost.is_file()
    assert sorted(known) == [False, True, True, True, True]


def test_bad_pictures_are_named_and_tried_again(
    dataset: Path, restorer: Restoring, tmp_path: Path
) -> None:
    whole = (dataset / "snow/input/a.png").read_bytes()
    cases = cases_of_dataset(dataset)
    (dataset / "snow/input/a.png").write_bytes(whole[: len(whole) // 2])
    Image.new("RGB", (50, 40)).save(dataset / "snow/gt/c.png")
    (dataset / "rain/gt/b.png").unlink()

    def failing(picture: Picture) -> Picture:
        if picture.path is not None and picture.path.name == "two words.jpg":
            raise MemoryError("not even the smallest tile fits")
        return restorer(picture)

    result = evaluate(failing, cases, output=tmp_path)
    errors = {record.name: record.error for record in result.failed}
    assert set(errors) == {
        *("snow/input/a.png", "snow/input/c.png", "snow/input/two words.jpg", "rain/input/b.png")
    }
    assert "snow/input/a.png: cannot be decoded" in errors["snow/input/a.png"]
    assert "60 x 40 pixels and its truth" in errors["snow/input/c.png"]
    assert errors["snow/input/two words.jpg"] == "MemoryError: not even the smallest tile fits"
    assert "rain/gt/b.png: there is no such file" in errors["rain/input/b.png"]
    assert len(result.scored) == 1
    (dataset / "snow/input/a.png").write_bytes(whole)
    again = evaluate(restorer, cases, output=tmp_path)
    assert {record.name for record in again.failed} == {"snow/input/c.png", "rain/input/b.png"}


def test_tiny_pictures_fail_alone(tmp_path: Path, restorer: Restoring) -> None:
    for place in ("input", "gt"):
        (tmp_path / "snow" / place).mkdir(parents=True)
        Image.new("RGB", (8, 9)).save(tmp_path / "snow" / place / "a.png")
    cases = cases_of_dataset(tmp_path)
    assert evaluate(restorer, cases, ["paper"]).scored[0].scores["paper"].psnr == math.inf
    (record,) = evaluate(restorer, cases, BOTH).failed
    assert "at least 11 x 11 pixels, got 8 x 9" in (record.error or "")


def test_a_gallery_shows_the_worst_and_the_best(
    dataset: Path, restorer: Restoring, tmp_path: Path
) -> None:
    pytest.importorskip("clipweather_fast.contact_sheet")
    cases = cases_of_dataset(dataset)
    result = evaluate(restorer, cases, BOTH)
    written = write_gallery(result, cases, restorer, tmp_path, count=2)
    assert [path.name for path in written] == ["worst.png", "best.png"]
    with Image.open(written[0]) as sheet:
        assert sheet.width > 3 * 60
        assert sheet.height > 2 * 40
    assert written[0].read_bytes() != written[1].read_bytes()
    (dataset / "rain/gt/b.png").unlink()
    empty = evaluate(restorer, [case for case in cases if case.name == "rain/input/b.png"])
    assert write_gallery(empty, cases, restorer, tmp_path) == []


def test_arguments_are_checked(dataset: Path, restorer: Restoring) -> None:
    cases = cases_of_dataset(dataset)
    with pytest.raises(ValueError, match="no protocol 'ssim'"):
        evaluate(restorer, cases, ["ssim"])
    with pytest.raises(ValueError, match="no picture"):
        evaluate(restorer, [])
    with pytest.raises(ValueError, match="no protocol"):
        evaluate(restorer, cases, [])
    with pytest.raises(ValueError, match="1 <= i <= n"):
        evaluate(restorer, cases, shard=(3, 2))


def test_a_digest_tells_weights_apart() -> None:
    torch.manual_seed(0)
    one = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.BatchNorm2d(3))
    before = weights_digest(one)
    assert weights_digest(one) == before
    assert len(before) == 16
    with torch.no_grad():
        one[0].weight[0, 0] += 1e-6
    assert weights_digest(one) != before
    assert weights_digest(one.bfloat16()) != before
