"""``data check`` finds what is wrong with a dataset, ``data list`` prints what is found in it."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from clipweather_fast.cli import app
from clipweather_fast.data import DatasetError, Pair, find_pairs
from clipweather_fast.data.check import DatasetReport, check
from clipweather_fast.data.published import compare_counts
from command import clipweather, words
from small_dataset import HEIGHT, WIDTH, noise, put


def dataset(root: Path, *places: str) -> None:
    """A good dataset: three pairs in each place, all pictures different."""
    for place in places:
        for name in ("a", "b", "c"):
            put(root, f"{place}/input/{name}.png", f"{place}/gt/{name}.png")


def kinds(report: DatasetReport) -> Counter[tuple[str, bool]]:
    return Counter((problem.kind, problem.fatal) for problem in report.problems)


def messages(report: DatasetReport, kind: str) -> list[str]:
    return [str(problem) for problem in report.problems if problem.kind == kind]


# ---- what is found -------------------------------------------------------------------------------


def test_a_good_dataset_has_no_problem(tmp_path: Path) -> None:
    dataset(tmp_path, "train/snow", "train/rain", "test/snow")
    report = check([tmp_path])
    assert report.good
    assert report.problems == ()
    assert (report.pairs, report.files, report.layouts) == (9, 18, ("folders",))
    assert report.counts == {"test": {"snow": 3}, "train": {"rain": 3, "snow": 3}}
    assert report == check([tmp_path], workers=1)


def test_missing_and_unused_partners(tmp_path: Path) -> None:
    dataset(tmp_path, "snow")
    (tmp_path / "snow/gt/b.png").unlink()
    (tmp_path / "snow/input/c.png").unlink()
    report = check([tmp_path])
    assert kinds(report) == {("missing", True): 1, ("unused", False): 1}
    assert messages(report, "missing")[0].startswith(f"{tmp_path}/snow/input/b.png: has no truth")
    assert messages(report, "unused")[0].startswith(f"{tmp_path}/snow/gt/c.png: ")


def test_damaged_files_and_unequal_sizes(tmp_path: Path) -> None:
    dataset(tmp_path, "snow")
    whole = (tmp_path / "snow/gt/a.png").read_bytes()
    (tmp_path / "snow/gt/a.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "snow/input/b.png").write_bytes(b"")
    put(tmp_path, "snow/input/c.png", width=WIDTH + 1)
    report = check([tmp_path])
    assert kinds(report) == {("unreadable", True): 2, ("sizes", True): 1}
    assert not report.good
    assert "b.png: is empty" in messages(report, "unreadable")[1]
    assert "29 x 20 pixels, but its truth" in messages(report, "sizes")[0]
    # Headers show the sizes and the empty file, but not what is cut off.
    assert kinds(check([tmp_path], decode=False)) == {("unreadable", True): 1, ("sizes", True): 1}


def test_repeated_and_unchanged_pictures(tmp_path: Path) -> None:
    dataset(tmp_path, "snow")
    shutil.copy(tmp_path / "snow/input/a.png", tmp_path / "snow/input/b.png")
    shutil.copy(tmp_path / "snow/gt/c.png", tmp_path / "snow/input/c.png")
    report = check([tmp_path])
    assert report.good
    assert kinds(report) == {("duplicate", False): 1, ("unchanged", False): 1}
    assert kinds(check([tmp_path], decode=False)) == {}
    listed = "snow/input/a.png\nsnow/input/b.png\nsnow/input/a.png\n"
    (tmp_path / "all.txt").write_text(listed)
    report = check([tmp_path])
    assert messages(report, "repeated")[0].startswith(f"{tmp_path}/all.txt:3: ")


def test_a_training_picture_in_the_test_data_whatever_its_name_and_format(tmp_path: Path) -> None:
    dataset(tmp_path, "train/snow", "test/snow")
    clear = Image.open(tmp_path / "train/snow/gt/b.png")
    clear.save(tmp_path / "test/snow/gt/a.bmp")
    (tmp_path / "test/snow/gt/a.png").unlink()
    report = check([tmp_path])
    assert kinds(report) == {("leakage", True): 1}
    (message,) = messages(report, "leakage")
    assert message.startswith(f"{tmp_path}/train/snow/gt/b.png: is in train")
    assert message.endswith("test/snow/gt/a.bmp")
    # The two folders given apart are the same dataset; each alone is fine.
    apart = check([tmp_path / "train", tmp_path / "test"])
    assert messages(apart, "leakage") == messages(report, "leakage")
    assert check([tmp_path / "train"]).good


def test_two_folders_whose_names_say_nothing_are_two_splits(tmp_path: Path) -> None:
    for name in ("mine", "yours"):
        dataset(tmp_path, f"{name}/snow")
    assert check([tmp_path / "mine", tmp_path / "yours"]).good
    shutil.copy(tmp_path / "mine/snow/gt/a.png", tmp_path / "yours/snow/gt/c.png")
    (message,) = messages(check([tmp_path / "mine", tmp_path / "yours"]), "leakage")
    assert f"is in {tmp_path}/mine, and the same picture is in {tmp_path}/yours" in message


def test_one_truth_of_several_pictures_is_no_duplicate(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/in/im_0007_s{s}_a04.png" for s in (80, 85)), "train/gt/im_0007.png")
    report = check([tmp_path], counts=False)
    assert (report.pairs, report.files, report.problems) == (2, 3, ())


def test_scenes_of_outdoor_rain_in_training_and_test(tmp_path: Path) -> None:
    def scene(split: str, number: int) -> None:
        name = f"im_{number:04d}_s80_a04.png"
        put(tmp_path, f"{split}/input/{name}", seed=number + 1000 * len(split))
        put(tmp_path, f"{split}/gt/{name}", seed=number + 2000 * len(split))

    for number in (1, 2, 300, 310):
        scene("train", number)
    for number in (2, 301):
        scene("test", number)
    found = messages(check([tmp_path], counts=False), "leakage")
    assert len(found) == 2
    assert "scene im_0002 is in train and in test" in found[0]
    assert "scene im_0310 is in train, but im_0301 to im_0350 are the scenes of Test1" in found[1]


def test_pictures_of_unknown_weather_are_counted(tmp_path: Path) -> None:
    dataset(tmp_path, "photos")
    report = check([tmp_path])
    assert report.good
    assert "3 pictures of which no name says the weather" in messages(report, "weather")[0]


def test_every_problem_of_a_list_is_reported(tmp_path: Path) -> None:
    dataset(tmp_path, "snow")
    (tmp_path / "all.txt").write_text("snow/input/a.png\nx/input/b.png\n../input/b.png\nnone\n")
    report = check([tmp_path])
    assert kinds(report) == {("missing", True): 1, ("outside", True): 1, ("line", True): 1}
    places = [problem.place for problem in report.problems]
    assert places == [f"{tmp_path}/all.txt:{number}" for number in (2, 3, 4)]


def test_nothing_at_all(tmp_path: Path) -> None:
    assert kinds(check([tmp_path])) == {("empty", True): 1}
    with pytest.raises(DatasetError, match="there is no such folder"):
        check([tmp_path / "nowhere"])


# ---- published counts ----------------------------------------------------------------------------


def published(snow: int, rain: int, drops: int, split: str | None) -> list[Pair]:
    rainy = [
        f"im_{scene:04d}_s{s}_a{a:02d}"
        for scene in range(1, 700)
        for s in (80, 85, 90, 95, 100)
        for a in (4, 5, 6)
    ]
    stems = [(f"city_{i:05d}", "snow") for i in range(snow)]
    stems += [(stem, "rain") for stem in rainy[:rain]]
    stems += [(f"{i}_rain", "raindrop") for i in range(drops)]
    folder = Path("allweather")
    return [
        Pair(folder / "input" / f"{stem}.png", folder / "gt" / f"{stem}.png", weather, split)
        for stem, weather in stems
    ]


@pytest.mark.parametrize(
    ("counts", "split"), [((9001, 8250, 818), "train"), ((16801, 750, 58), "test")]
)
def test_the_published_counts_are_right(counts: tuple[int, int, int], split: str) -> None:
    pairs = published(*counts, split=split)
    assert len(pairs) == (18_069 if split == "train" else 17_609)
    found, problems = compare_counts(pairs)
    assert found == {
        "Snow100K": {split: counts[0]},
        "Outdoor-Rain": {split: counts[1]},
        "RainDrop": {split: counts[2]},
    }
    assert problems == []


def test_what_is_missing_of_the_published_pictures(tmp_path: Path) -> None:
    _, problems = compare_counts(published(9001, 8249, 819, "train"))
    rain, drops, scene = map(str, problems)
    assert rain == (
        "Outdoor-Rain train: 8,249 pictures; published are 8,250 or 9,000, at least 1 missing"
    )
    assert drops == "RainDrop train: 819 pictures; published are 818 or 861"
    assert scene == "Outdoor-Rain train: scene im_0550 has 14 pictures, published are 15"
    assert [problem.fatal for problem in problems] == [True, False, False]
    # Without a split nobody knows how many there should be.
    assert not any(problem.fatal for problem in compare_counts(published(5, 0, 0, None))[1])


# ---- the commands --------------------------------------------------------------------------------


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["data", *map(str, arguments)])


def test_check_prints_counts_problems_and_exits_with_1(tmp_path: Path) -> None:
    dataset(tmp_path, "train/snow", "test/rain")
    done = run("check", tmp_path, "--json", tmp_path / "report.json")
    assert done.exit_code == 0, done.output
    assert "6 pairs (layout: folders)\n  test: rain 3\n  train: snow 3\n" in done.output
    assert "no problems" in done.output
    for name in ("d", "e", *map(str, range(15))):
        put(tmp_path, f"train/snow/input/{name}.png")
    (tmp_path / "train/snow/gt/a.png").write_text("no picture")
    done = run("check", tmp_path / "train", tmp_path / "test", "--json", tmp_path / "report.json")
    assert done.exit_code == 1
    assert "problems: 18" in done.output
    assert "missing (17)" in done.output
    assert "and 7 more; --json FILE has all" in done.output
    assert "a.png: is not a picture" in done.output
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["good"], report["pairs"], len(report["problems"])) == (False, 6, 18)
    assert report["problems"][0].keys() == {"kind", "place", "words", "fatal"}
    assert report["counts"] == {"test": {"rain": 3}, "train": {"snow": 3}}


def test_check_as_a_stranger_runs_it(tmp_path: Path) -> None:
    dataset(tmp_path, "snow")
    (tmp_path / "snow/input/line\nbreak.png").write_bytes(b"")
    done = clipweather("data", "check", tmp_path, "--quick")
    assert done.returncode == 1
    assert "line\\nbreak.png: has no truth" in done.stdout
    assert done.stderr.startswith("checked headers of 6 files (")


def test_wrong_arguments_exit_with_2(tmp_path: Path) -> None:
    done = run("check", tmp_path / "nowhere")
    assert done.exit_code == 2
    assert "there is no such folder or file" in words(done.output)
    done = run("check", tmp_path, "--json", tmp_path / "nowhere" / "report.json")
    assert done.exit_code == 2
    assert "there is no folder" in words(done.output)
    assert run("list", tmp_path / "nowhere").exit_code == 2


def test_counts_can_be_left_out(tmp_path: Path) -> None:
    put(tmp_path, "train/input/0_rain.png", "train/gt/0_clean.png")
    assert run("check", tmp_path).exit_code == 1
    assert run("check", tmp_path, "--no-counts").exit_code == 0


def test_a_list_is_a_layout_of_its_own(tmp_path: Path) -> None:
    dataset(tmp_path, "snow", "hazy place")
    done = run("list", tmp_path, "--json")
    assert done.exit_code == 0
    lines = [line for line in done.output.splitlines() if line.startswith("{")]
    before = find_pairs(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    after = find_pairs(tmp_path)
    assert {pair.origin for pair in after} == {f"{tmp_path}/pairs.jsonl:{n + 1}" for n in range(6)}
    assert [(p.image, p.truth, p.weather) for p in after] == [
        (p.image, p.truth, p.weather) for p in before
    ]


def test_list_prints_pairs_or_counts_and_names_what_is_wrong(tmp_path: Path) -> None:
    dataset(tmp_path, "train/snow", "test/rain")
    done = run("list", tmp_path, "--split", "test")
    assert done.exit_code == 0
    first = f"{tmp_path}/test/rain/input/a.png\t{tmp_path}/test/rain/gt/a.png\train"
    assert done.stdout.splitlines()[0] == first
    assert done.stderr == "3 pairs\n"
    put(tmp_path, "train/snow/input/z.png")
    done = run("list", tmp_path, "--counts")
    assert done.exit_code == 1
    assert done.stdout == "test\train\t3\ntrain\tsnow\t3\n"
    assert "z.png: has no truth" in done.stderr


def test_equal_pixels_have_one_fingerprint_whatever_the_file(tmp_path: Path) -> None:
    from clipweather_fast.data.contents import contents

    image = Image.fromarray(noise(5)).convert("L")
    image.save(tmp_path / "a.png")
    image.convert("RGB").save(tmp_path / "b.tif")
    image.convert("RGBA").save(tmp_path / "c.webp", lossless=True)
    Image.fromarray(noise(5, HEIGHT, WIDTH - 1)).save(tmp_path / "d.png")
    found = contents(sorted(tmp_path.iterdir()))
    a, b, c, d = (found[path].pixels for path in sorted(tmp_path.iterdir()))
    assert a == b == c != d
    assert len(a) == 16
