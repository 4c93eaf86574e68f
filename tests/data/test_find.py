"""Which pairs are found in which layout, with which weather, and what the errors say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipweather_fast.data import WEATHERS, DatasetError, Pair, find_pairs
from small_dataset import touch


def found(root: Path, *arguments: Any, **choices: Any) -> list[tuple[str, str, str | None]]:
    """Picture, truth and weather of every pair; paths relative to the folder."""
    pairs = find_pairs(root, *arguments, **choices)
    top = root if root.is_dir() else root.parent
    return [
        (p.image.relative_to(top).as_posix(), p.truth.relative_to(top).as_posix(), p.weather)
        for p in pairs
    ]


def listed(root: Path, name: str, *lines: str) -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes("\n".join(lines).encode())
    return path


# ---- lists ---------------------------------------------------------------------------------------

SNOWY = "sidewalk winter -grayscale -gray_05928.jpg"


def test_transweathers_list_with_spaces_comments_and_windows_separators(tmp_path: Path) -> None:
    names = [SNOWY, "im_0001_s80_a04.png", "7_rain.png"]
    touch(tmp_path, *(f"allweather/{kind}/{name}" for name in names for kind in ("input", "gt")))
    listed(
        tmp_path,
        "allweather.txt",
        "\ufeff# made by hand",
        "",
        f"  ./allweather/input/{SNOWY}  ",
        ".\\allweather\\input\\im_0001_s80_a04.png\r",
        "allweather/input/7_rain.png",
    )
    assert found(tmp_path) == [
        (f"allweather/input/{SNOWY}", f"allweather/gt/{SNOWY}", "snow"),
        ("allweather/input/im_0001_s80_a04.png", "allweather/gt/im_0001_s80_a04.png", "rain"),
        ("allweather/input/7_rain.png", "allweather/gt/7_rain.png", "raindrop"),
    ]
    assert found(tmp_path / "allweather.txt") == found(tmp_path) == found(tmp_path, "list")
    (tmp_path / "allweather.txt").rename(tmp_path / "allweather" / "pairs.txt")
    assert {pair.split for pair in find_pairs(tmp_path / "allweather", "folders")} == {"train"}


def test_only_the_last_input_of_a_path_becomes_gt(tmp_path: Path) -> None:
    touch(tmp_path, "input/my inputs/input/data/input.png", "input/my inputs/gt/data/input.png")
    listed(tmp_path, "all.txt", "input/my inputs/input/data/input.png")
    assert found(tmp_path)[0][1] == "input/my inputs/gt/data/input.png"


@pytest.mark.parametrize("between", [" ", "\t", ", ", " ; "])
def test_a_second_column_is_the_weather(tmp_path: Path, between: str) -> None:
    touch(tmp_path, "snow/input/a b.png", "snow/gt/a b.png", "x/input/c.png rain.png")
    touch(tmp_path, "x/gt/c.png rain.png")
    lines = (f"snow/input/a b.png{between}raindrop", "x/input/c.png rain.png")
    listed(tmp_path, "all.txt", *lines)
    assert [(name, weather) for name, _, weather in found(tmp_path)] == [
        ("snow/input/a b.png", "raindrop"),
        ("x/input/c.png rain.png", None),
    ]


def test_lists_of_all_kinds_of_tests_beside_each_other(tmp_path: Path) -> None:
    touch(tmp_path, "test/Snow100K-L/input/a.jpg", "test/Snow100K-L/gt/a.jpg")
    touch(tmp_path, "test/test1/input/im_0301_s80_a04.png", "test/test1/gt/im_0301.png")
    touch(tmp_path, "test/drops/input/0_rain.png", "test/drops/gt/0_clean.png")
    listed(tmp_path, "test/snowtest100k_L.txt", "./Snow100K-L/input/a.jpg")
    listed(tmp_path, "test/test1.txt", "./test1/input/im_0301_s80_a04.png")
    listed(tmp_path, "test/raindroptesta.txt", "./drops/input/0_rain.png")
    pairs = found(tmp_path)
    assert [pair[1:] for pair in pairs] == [
        ("test/drops/gt/0_clean.png", "raindrop"),
        ("test/Snow100K-L/gt/a.jpg", "snow"),
        ("test/test1/gt/im_0301.png", "rain"),
    ]
    assert {pair.split for pair in find_pairs(tmp_path)} == {"test"}
    origin = find_pairs(tmp_path)[2].origin
    assert origin == str(tmp_path / "test/test1.txt") + ":1"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("snow/input/none.png", "there is no {root}/snow/input/none.png"),
        ("snow/input/alone.png", "snow/input/alone.png has no truth in snow/gt"),
        ("elsewhere/a.png", "elsewhere/a.png has no folder called input"),
        ("bare/input/a.png", "bare/input/a.png has no truth since there is no folder gt"),
        ("snow/input/a.png fog storm", "expected the path of a picture"),
        ("snow/input/a.png sleet", "'sleet' is none of snow, rain, raindrop"),
        ("../snow/input/a.png", "is not in the dataset's folder"),
        ("/etc/input/a.png", "is not in the dataset's folder"),
        ("C:\\data\\input\\a.png", "is not in the dataset's folder"),
        ("snow/input/two.png", "two has the endings .jpg, .webp"),
        ("notes", "expected the path of a picture"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, words: str) -> None:
    root = tmp_path / "set"
    touch(root, "snow/input/a.png", "snow/gt/a.png", "snow/input/alone.png", "elsewhere/a.png")
    touch(root, "bare/input/a.png", "snow/input/two.png", "snow/gt/two.jpg", "snow/gt/two.webp")
    touch(tmp_path, "snow/input/a.png", "snow/gt/a.png")
    listed(root, "all.txt", "snow/input/a.png", "", line)
    with pytest.raises(DatasetError) as caught:
        find_pairs(root)
    assert str(caught.value).startswith(f"{root}/all.txt:3: ")
    assert words.format(root=root) in str(caught.value)
    assert len(find_pairs(root, strict=False)) == 1


def test_several_problems_are_counted(tmp_path: Path) -> None:
    listed(tmp_path, "all.txt", "input/a.png", "input/b.png", "input/c.png")
    with pytest.raises(DatasetError, match=r"all.txt:1: .*\(2 more problems; `clipweather data"):
        find_pairs(tmp_path)


def test_absolute_paths_inside_the_folder_are_fine(tmp_path: Path) -> None:
    touch(tmp_path, "input/a.png", "gt/a.png")
    listed(tmp_path, "all.txt", f"{tmp_path}/input/a.png")
    assert found(tmp_path) == [("input/a.png", "gt/a.png", None)]


def test_a_link_in_the_folder_may_lead_elsewhere(tmp_path: Path) -> None:
    touch(tmp_path, "disk/input/a.png", "disk/gt/a.png")
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "snow").symlink_to(tmp_path / "disk", target_is_directory=True)
    (tmp_path / "set" / "snow" / "again").symlink_to("..", target_is_directory=True)
    (tmp_path / "set" / "snow" / "input" / "self").symlink_to(".", target_is_directory=True)
    assert found(tmp_path / "set") == [("snow/input/a.png", "snow/gt/a.png", "snow")]


def test_a_name_that_is_no_text_is_found(tmp_path: Path) -> None:
    name = b"caf\xe9.png".decode(errors="surrogateescape")
    touch(tmp_path, f"input/{name}", f"gt/{name}")
    (tmp_path / "all.txt").write_bytes(b"input/caf\xe9.png\n")
    assert found(tmp_path) == [(f"input/{name}", f"gt/{name}", None)]


# ---- JSON ----------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    touch(tmp_path, "a/x y.png", "b/x.png", "a/z.png")
    records: list[dict[str, Any]] = [
        {"lq": "a/x y.png", "gt": "b\\x.png", "weather": "snow", "caption": "a road"},
        {"lq": "a/z.png", "gt": "b/x.png", "weather": None},
    ]
    listed(tmp_path, "pairs.jsonl", *map(json.dumps, records), "")
    expected = [("a/x y.png", "b/x.png", "snow"), ("a/z.png", "b/x.png", None)]
    assert found(tmp_path) == found(tmp_path, "jsonl") == expected
    assert found(tmp_path / "pairs.jsonl") == expected


def test_an_array_of_truths_and_pictures(tmp_path: Path) -> None:
    touch(tmp_path, "meta/gt/x.png", "in/im_1_s1_a1.png", "in/7_rain.png")
    entries = [["gt/x.png", "in/im_1_s1_a1.png"], ["gt\\x.png", "in/7_rain.png"]]
    for indent in (None, 2):
        listed(tmp_path, "meta/train.json", json.dumps(entries, indent=indent))
        assert found(tmp_path) == [
            ("in/im_1_s1_a1.png", "meta/gt/x.png", "rain"),
            ("in/7_rain.png", "meta/gt/x.png", "raindrop"),
        ]
        assert find_pairs(tmp_path)[0].split == "train"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("p.jsonl", '{"lq": "a.png", "gt": "a.png"}\n\n{"lq": ', ":3: is not JSON"),
        ("p.jsonl", '{"lq": "a.png", "gt": "a.png"}\n[1]', ":2: expected an object"),
        ("p.jsonl", '{"lq": "a.png", "gt": 3}', ':1: expected "lq" and "gt" with a path each'),
        ("p.jsonl", '{"lq": "a.png", "gt": "b.png"}', "p.jsonl:1: there is no truth "),
        (
            "p.jsonl",
            '{"lq": "a.png", "gt": "a.png", "weather": 1}',
            ':1: "weather" must be a word, got 1',
        ),
        (
            "p.jsonl",
            '{"lq": "a.png", "gt": "a.png", "weather": "sun"}',
            ":1: 'sun' is none of snow",
        ),
        ("p.jsonl", '{"lq": "a.png", "gt": "../a.png"}', ":1: truth ../a.png is not in the"),
        ("p.json", '[["a.png", "a.png"],\n\n["a.png"]]', ":3: expected [truth, image]"),
        ("p.json", '[["a.png", "a.png"],\n["a.png', ":2: is not JSON"),
        ("p.json", '[["a.png", "a.png"],\n["b.png", "a.png"]]', ":2: there is no truth"),
        ("p.jsonl", '{"lq": "a.png", "gt": "a.png"}\n' + "[" * 100_000, ":2: "),
    ],
)
def test_bad_json_is_named_by_its_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    touch(tmp_path, "a.png")
    (tmp_path / name).write_text(text)
    with pytest.raises(DatasetError) as caught:
        find_pairs(tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_other_json_and_text_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "rain/input/a.png", "rain/gt/a.png")
    listed(tmp_path, "README.txt", "Put photo.png into input.")
    listed(tmp_path, "config.json", '{"a": [[1]]}')
    listed(tmp_path, "captions.jsonl", '{"file_name": "a.png", "text": "rain"}')
    assert found(tmp_path) == [("rain/input/a.png", "rain/gt/a.png", "rain")]


# ---- BasicSR -------------------------------------------------------------------------------------


def test_basicsr_by_its_meta_info_file(tmp_path: Path) -> None:
    touch(tmp_path, "snow/lq/a b.jpg", "snow/gt/a b.png", "snow/lq/c.png", "snow/gt/c.png")
    listed(tmp_path, "snow/meta_info_snow.txt", "a b.png (480,480,3)", "c.png")
    expected = [
        ("snow/lq/a b.jpg", "snow/gt/a b.png", "snow"),
        ("snow/lq/c.png", "snow/gt/c.png", "snow"),
    ]
    assert found(tmp_path) == found(tmp_path, "basicsr") == expected


def test_basicsr_stated_with_a_template(tmp_path: Path) -> None:
    touch(tmp_path, "low/a_rainy.png", "high/a.png", "low/b_rainy.jpg", "high/b.png")
    listed(tmp_path, "meta.txt", "sub/b.png (480,480,3)")
    stated = {"degraded": "low", "truth": "high", "template": "{}_rainy"}
    assert found(tmp_path, "basicsr", **stated) == [
        ("low/a_rainy.png", "high/a.png", None),
        ("low/b_rainy.jpg", "high/b.png", None),
    ]
    assert len(find_pairs(tmp_path, meta_info="meta.txt", **stated)) == 1
    touch(tmp_path, "high/c.png")
    with pytest.raises(DatasetError, match=r"c.png has 0 degraded pictures c_rainy.png in .*low"):
        find_pairs(tmp_path, **stated)
    with pytest.raises(DatasetError, match="no such folder"):
        find_pairs(tmp_path, degraded="low", truth="nowhere")
    with pytest.raises(DatasetError, match="not in the dataset's folder"):
        find_pairs(tmp_path, degraded="../low", truth="high")


def test_basicsr_names_the_line_of_a_truth_that_is_not_there(tmp_path: Path) -> None:
    touch(tmp_path, "lq/a.png", "gt/a.png")
    listed(tmp_path, "meta_info.txt", "a.png", "b.png (1,1,3)")
    with pytest.raises(DatasetError, match=r"meta_info.txt:2: there is no truth .*gt/b.png"):
        find_pairs(tmp_path)


# ---- folders -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("degraded", "truth"), [("input", "gt"), ("LQ", "GT"), ("lq", "gt")])
def test_a_folder_for_each_weather(tmp_path: Path, degraded: str, truth: str) -> None:
    for weather in WEATHERS:
        touch(tmp_path, f"{weather}/{degraded}/a.png", f"{weather}/{truth}/a.png")
    assert found(tmp_path) == [
        (f"{weather}/{degraded}/a.png", f"{weather}/{truth}/a.png", weather)
        for weather in sorted(WEATHERS)
    ]


def test_the_datasets_own_folders_and_names(tmp_path: Path) -> None:
    touch(tmp_path, "RainDrop/test_a/data/0_rain.png", "RainDrop/test_a/gt/0_clean.png")
    touch(tmp_path, "Outdoor-Rain/test/in/im_0001_s80_a04.png")
    touch(tmp_path, "Outdoor-Rain/test/in/im_0001_s85_a06.png", "Outdoor-Rain/test/gt/im_0001.png")
    touch(tmp_path, "Snow100K-testset/Snow100K-L/synthetic/b_00001.jpg")
    touch(tmp_path, "Snow100K-testset/Snow100K-L/gt/b_00001.jpg")
    touch(tmp_path, "Snow100K-testset/Snow100K-L/mask/b_00001.jpg")
    pairs = find_pairs(tmp_path)
    assert [(pair.truth.name, pair.weather, pair.split) for pair in pairs] == [
        ("im_0001.png", "rain", "test"),
        ("im_0001.png", "rain", "test"),
        ("0_clean.png", "raindrop", "test"),
        ("b_00001.jpg", "snow", "test"),
    ]


def test_folders_in_the_folders_and_a_list_for_a_part(tmp_path: Path) -> None:
    touch(tmp_path, "snow/input/night/a.png", "snow/gt/night/a.png", "snow/gt/a.png")
    touch(tmp_path, "listed/input/a.png", "listed/gt/a.png", "listed/input/b.png")
    listed(tmp_path, "listed/some.txt", "input/a.png rain")
    assert found(tmp_path) == [
        ("listed/input/a.png", "listed/gt/a.png", "rain"),
        ("snow/input/night/a.png", "snow/gt/night/a.png", "snow"),
    ]


def test_a_picture_without_truth_is_an_error_or_left_out(tmp_path: Path) -> None:
    touch(tmp_path, "snow/input/a.png", "snow/input/b.png", "snow/gt/a.png", "snow/input/.c.png")
    touch(tmp_path, "snow/input/notes.txt")
    with pytest.raises(DatasetError, match=r"snow/input/b.png: has no truth in .*snow/gt$"):
        find_pairs(tmp_path)
    assert found(tmp_path, strict=False) == [("snow/input/a.png", "snow/gt/a.png", "snow")]


# ---- splits and weathers ---------------------------------------------------------------------


def test_training_and_test_pictures_are_never_mixed(tmp_path: Path) -> None:
    for place in ("train/snow", "test/snow", "snow/val"):
        touch(tmp_path, f"{place}/input/a.png", f"{place}/gt/a.png")
    with pytest.raises(DatasetError, match=r"holds test and train and val pictures; state split="):
        find_pairs(tmp_path)
    for split in ("train", "val", "test"):
        (pair,) = find_pairs(tmp_path, split=split)
        assert split in pair.image.parts
        assert pair.split == split
    with pytest.raises(DatasetError, match="has no split 'val'; there is train"):
        find_pairs(tmp_path / "train", split="val")


def test_the_dataset_folders_own_name_counts_last(tmp_path: Path) -> None:
    for place in ("snow/train", "snow", "haze"):
        touch(tmp_path, f"{place}/input/a.png", f"{place}/gt/a.png", f"{place}/input/1_rain.png")
        touch(tmp_path, f"{place}/gt/1_rain.png")
    for place, weather in (("snow/train", "snow"), ("haze", "rain")):
        labels = [label for _, _, label in found(tmp_path / place)]
        assert labels == ["raindrop", weather]


@pytest.mark.parametrize(
    ("name", "weather"),
    [
        ("snow", "snow"),
        ("Snow100K-L", "snow"),
        ("raindroptesta", "raindrop"),
        ("RainDrop", "raindrop"),
        ("rain_drops", "raindrop"),
        ("Outdoor-Rain", "rain"),
        ("Rain13K", "rain"),
        ("hazy", "rain"),
        ("test1", "rain"),
        ("train", None),
        ("training", None),
        ("allweather", None),
        ("snow_and_rain", None),
        ("drop", None),
    ],
)
def test_what_folder_names_say(tmp_path: Path, name: str, weather: str | None) -> None:
    touch(tmp_path, f"{name}/x/input/a.png", f"{name}/x/gt/a.png")
    expected = "snow" if name == "allweather" else weather
    assert [label for _, _, label in found(tmp_path)] == [expected]


def test_a_stated_weather_wins(tmp_path: Path) -> None:
    touch(tmp_path, "snow/input/a.png", "snow/gt/a.png")
    (pair,) = find_pairs(tmp_path, weather="raindrop")
    assert (pair.weather, pair.label) == ("raindrop", 2)
    assert Pair(pair.image, pair.truth).label == -1


# ---- wrong arguments -----------------------------------------------------------------------------


def test_nothing_and_nonsense_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="holds no pairs: expected a list"):
        find_pairs(tmp_path)
    with pytest.raises(DatasetError, match="there is no such folder or file"):
        find_pairs(tmp_path / "nowhere")
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(DatasetError, match="is no list: expected a folder or a file that ends"):
        find_pairs(tmp_path / "a.csv")
    for wrong in (
        {"layout": "imagenet"},
        {"weather": "sun"},
        {"degraded": "lq"},
        {"meta_info": "m.txt"},
        {"template": "x4"},
        {"template": "{0}{}"},
    ):
        with pytest.raises(ValueError, match=r"must|stated"):
            find_pairs(tmp_path, **wrong)  # type: ignore[arg-type]
