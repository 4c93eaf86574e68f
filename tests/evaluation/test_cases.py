"""What is scored with what: datasets, pairs of folders, and partners that are missing."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from clipweather_fast.data import DatasetError, Pair, find_pairs
from clipweather_fast.evaluation import (
    Case,
    cases_of_dataset,
    cases_of_folders,
    cases_of_pairs,
    with_restored,
)
from clipweather_fast.evaluation.cases import saved_places, share
from clipweather_fast.restore.jobs import InputError

NAMES = ["rain/input/a.png", "rain/input/b.png", "snow/input/a.png", "snow/input/c.png"]
NAMES += ["snow/input/two words.jpg"]


def picture(path: Path, size: tuple[int, int] = (20, 16)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "gray").save(path)
    return path


def test_a_datasets_cases_have_names_truths_and_weathers(dataset: Path) -> None:
    cases = cases_of_dataset(dataset)
    assert sorted(case.name for case in cases) == NAMES
    for case in cases:
        assert case.image == dataset / case.name
        assert case.truth == dataset / case.name.replace("input", "gt")
        assert case.weather == case.name[:4]
        assert case.restored is case.problem is None
    assert sorted(cases, key=str) == sorted(cases_of_pairs(find_pairs(dataset)), key=str)


def test_what_is_wrong_in_a_dataset_is_a_case_with_a_problem(dataset: Path) -> None:
    (dataset / "snow/gt/a.png").unlink()
    cases = {case.name: case for case in cases_of_dataset(dataset)}
    (bad,) = [case for case in cases.values() if case.problem is not None]
    assert "snow" in bad.name
    assert len(cases) == 5
    with pytest.raises(DatasetError, match="no pairs"):
        cases_of_dataset(picture(dataset / "empty/x.png").parent)


def test_problems_of_another_split_are_left_out(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for place in ("input", "gt"):
            picture(tmp_path / split / "snow" / place / "a.png")
    picture(tmp_path / "train/snow/input/alone.png")
    with pytest.raises(DatasetError, match="test and train"):
        cases_of_dataset(tmp_path)
    assert [case.problem for case in cases_of_dataset(tmp_path, split="test")] == [None]
    assert len([c for c in cases_of_dataset(tmp_path, split="train") if c.problem]) == 1


def test_a_picture_with_two_truths_is_an_error(tmp_path: Path) -> None:
    pairs = [Pair(tmp_path / "a.png", tmp_path / name) for name in ("b.png", "c.png")]
    with pytest.raises(ValueError, match="appears with two truths"):
        cases_of_pairs(pairs)
    assert len(cases_of_pairs([pairs[0], pairs[0]])) == 1
    assert cases_of_pairs([]) == []


def test_two_folders_find_partners_by_place_and_name(tmp_path: Path) -> None:
    for name in ("snow/a.png", "b.png", "lonely.png", "twice.png"):
        picture(tmp_path / "restored" / name)
    for name in ("snow/a.png", "b.jpg", "twice.jpg", "twice.webp", "unasked.png"):
        picture(tmp_path / "truth" / name)
    picture(tmp_path / "input/snow/a.jpg")
    cases = {
        case.name: case for case in cases_of_folders(tmp_path / "restored", tmp_path / "truth")
    }
    truth = tmp_path / "truth"
    assert cases["snow/a.png"].truth == truth / "snow/a.png"
    assert cases["snow/a.png"].weather == "snow"
    assert cases["b.png"].truth == truth / "b.jpg"
    assert cases["b.png"].weather is None
    assert "no truth of this name" in (cases["lonely.png"].problem or "")
    assert "twice.jpg, twice.webp" in (cases["twice.png"].problem or "")
    assert "no partner" in (cases["truth/unasked.png"].problem or "")
    again = cases_of_folders(tmp_path / "restored", truth, tmp_path / "input")
    by_name = {case.name: case for case in again}
    assert by_name["snow/a.png"].image == tmp_path / "input/snow/a.jpg"
    assert "no degraded picture" in (by_name["b.png"].problem or "")
    with pytest.raises(InputError, match="does not exist"):
        cases_of_folders(tmp_path / "nowhere", truth)


def test_two_files_are_a_case(tmp_path: Path) -> None:
    restored, truth = picture(tmp_path / "x.png"), picture(tmp_path / "y.jpg")
    assert cases_of_folders(restored, truth) == [Case("x.png", truth, None, restored)]


def test_restored_pictures_are_found_under_the_names_they_are_saved_by(tmp_path: Path) -> None:
    names = ["a.png", "a.jpg", "snow/b.webp", "c.d.jpg", "gone.png"]
    cases = [Case(name, tmp_path / "truth.png", tmp_path / name) for name in names]
    places = saved_places(cases)
    assert [str(places[name]) for name in names] == [
        *("a.png.png", "a.jpg.png", "snow/b.png", "c.d.png", "gone.png")
    ]
    for name in names[:4]:
        picture(tmp_path / "out" / places[name])
    found = with_restored(cases, tmp_path / "out")
    assert [case.restored for case in found[:4]] == [
        tmp_path / "out" / places[n] for n in names[:4]
    ]
    assert found[4].restored is None
    assert "there is no restored picture" in (found[4].problem or "")
    picture(tmp_path / "out/gone.tif")
    assert with_restored(cases, tmp_path / "out")[4].restored == tmp_path / "out/gone.tif"


def test_names_stay_inside_their_folder(tmp_path: Path) -> None:
    outside = Pair(tmp_path / "elsewhere/../x.png", tmp_path / "y.png")
    (case,) = cases_of_pairs([outside], tmp_path / "data")
    assert not Path(case.name).is_absolute()
    assert ".." not in Path(case.name).parts


def test_shards_are_all_cases_once() -> None:
    cases = [Case(str(number), None) for number in range(7)]
    parts = [share(cases, index, 3) for index in (1, 2, 3)]
    assert sorted(case.name for part in parts for case in part) == [str(n) for n in range(7)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for index in (0, 4):
        with pytest.raises(ValueError, match="1 <= i <= n"):
            share(cases, index, 3)
