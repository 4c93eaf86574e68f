"""Which pictures are restored and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clipweather_fast.restore.jobs import InputError, Job, OutputError, plan, shard


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")


def pairs(inputs: Sequence[str], output: str = "out", **choices: Any) -> list[tuple[str, str]]:
    jobs = plan(inputs, Path(output), **choices)
    return [(str(job.source), str(job.target)) for job in jobs]


def test_a_folder_keeps_its_layout() -> None:
    make("in/b.JPG", "in/a.png", "in/deep/er/c.tiff", "in/notes.txt", "in/.hidden.png")
    make("in/.git/d.png", "in/deep/with space\nand line.webp")
    assert pairs(["in"]) == [
        ("in/a.png", "out/a.png"),
        ("in/b.JPG", "out/b.JPG"),
        ("in/deep/with space\nand line.webp", "out/deep/with space\nand line.webp"),
        ("in/deep/er/c.tiff", "out/deep/er/c.tiff"),
    ]


def test_files_go_into_the_folder_or_to_the_name() -> None:
    make("in/a.png", "in/b", "in/c.v2.jpg")
    assert pairs(["in/a.png"], "x.png") == [("in/a.png", "x.png")]
    assert pairs(["in/a.png"], "x") == [("in/a.png", "x/a.png")]
    assert pairs(["in/b", "in/c.v2.jpg"]) == [("in/b", "out/b"), ("in/c.v2.jpg", "out/c.v2.jpg")]
    Path("folder.png").mkdir()
    assert pairs(["in/a.png"], "folder.png") == [("in/a.png", "folder.png/a.png")]


def test_suffix_extension_and_comparison() -> None:
    make("in/a.v1.jpg")
    (job,) = plan(["in"], Path("out"), suffix="_clear", extension="png", compare=True)
    assert job == Job(
        Path("in/a.v1.jpg"), Path("out/a.v1_clear.png"), Path("out/a.v1_clear_compare.png")
    )


def test_patterns_keep_the_layout_below_their_fixed_part() -> None:
    make("in/x/a.png", "in/y/a.png", "in/y/z/b.jpg", "in/y/c.txt", "in/we[i]rd.png")
    assert pairs(["in/*/a.png"]) == [("in/x/a.png", "out/x/a.png"), ("in/y/a.png", "out/y/a.png")]
    assert pairs(["in/**/?.*g"]) == [
        ("in/x/a.png", "out/x/a.png"),
        ("in/y/a.png", "out/y/a.png"),
        ("in/y/z/b.jpg", "out/y/z/b.jpg"),
    ]
    # A file whose name looks like a pattern is that file.
    assert pairs(["in/we[i]rd.png"]) == [("in/we[i]rd.png", "out/we[i]rd.png")]


def test_a_folder_whose_name_looks_like_a_pattern() -> None:
    make("in/trip [2024]/a.png", "in/trip [2024]/x/b.png", "in/trip 2/c.png")
    assert pairs(["in/trip [2024]/*.png"]) == [("in/trip [2024]/a.png", "out/a.png")]
    assert pairs(["in/trip [2024]/*/*.png"]) == [("in/trip [2024]/x/b.png", "out/x/b.png")]


def test_a_pattern_does_not_lead_out_of_the_output() -> None:
    make("in/x/y/a.png", "b.png")
    for pattern in ("in/*/../../b.png", "in/**/../../b.png"):
        with pytest.raises(InputError, match="goes up after a wildcard"):
            plan([pattern], Path("out"))
    assert pairs(["in/../*.png"]) == [("in/../b.png", "out/b.png")]


@pytest.mark.parametrize("inputs", [["in"], ["in/**/*.png"]])
def test_links_are_followed_once_and_circles_end(inputs: list[str]) -> None:
    make("in/a/x.png", "elsewhere/y.png")
    Path("in/a/up").symlink_to("../..", target_is_directory=True)
    Path("in/a/again").symlink_to(".", target_is_directory=True)
    Path("in/self").symlink_to("self")
    Path("in/0link").symlink_to("../elsewhere", target_is_directory=True)
    assert pairs(inputs) == [("in/a/x.png", "out/a/x.png"), ("in/0link/y.png", "out/0link/y.png")]


def test_a_picture_that_links_to_itself_is_a_bad_picture() -> None:
    make("in/a.png")
    Path("in/b.png").symlink_to("b.png")
    assert [source for source, _ in pairs(["in"])] == ["in/a.png", "in/b.png"]


def test_an_output_inside_the_input_is_not_an_input() -> None:
    make("in/a.png", "in/out/a.png", "in/out/deep/b.png")
    for inputs in (["in"], ["in/**/*.png"]):
        assert pairs(inputs, "in/out") == [("in/a.png", "in/out/a.png")]


def test_results_beside_the_inputs_are_not_taken_for_inputs() -> None:
    make("in/a.png", "in/a_clear.png", "in/a_clear_compare.png", "in/b.png")
    assert pairs(["in"], "in", suffix="_clear", compare=True) == [
        ("in/a.png", "in/a_clear.png"),
        ("in/b.png", "in/b_clear.png"),
    ]
    with pytest.raises(OutputError, match=r"in/a\.png would overwrite the input in/a_clear\.png"):
        plan(["in/a.png", "in/a_clear.png"], Path("in"), suffix="_clear")


def test_the_same_picture_twice_is_one_job() -> None:
    make("in/a.png")
    assert pairs(["in", "in/a.png", "./in/../in/a.png"]) == [("in/a.png", "out/a.png")]


def test_two_inputs_for_one_output_stop_before_the_start() -> None:
    make("x/a.png", "y/a.png", "z/a.jpg", "z/a.png", "w/a.png", "w/a_compare.png")
    with pytest.raises(OutputError, match=r"x/a\.png and y/a\.png would both write out/a\.png"):
        plan(["x", "y"], Path("out"))
    with pytest.raises(OutputError, match=r"z/a\.jpg and z/a\.png .* --ext auto"):
        plan(["z"], Path("out"), extension="png")
    assert len(plan(["z"], Path("out"))) == 2
    with pytest.raises(OutputError, match=r"would both write out/a_compare\.png"):
        plan(["w"], Path("out"), compare=True)


def test_going_on_where_results_lie_beside_the_inputs() -> None:
    make("in/a.jpg", "in/b.jpg")
    first = pairs(["in"], "in", extension="png")
    make("in/a.png")
    with pytest.raises(OutputError, match="--skip-existing leaves it alone"):
        plan(["in"], Path("in"), extension="png")
    assert pairs(["in"], "in", extension="png", skip_existing=True) == first
    # Named itself it is an input, and stays one.
    with pytest.raises(OutputError, match="would both write"):
        plan(["in", "in/a.png"], Path("in"), extension="png", skip_existing=True)


def test_an_input_is_overwritten_only_when_asked() -> None:
    make("in/a.png")
    Path("link").symlink_to("in", target_is_directory=True)
    for output in ("in", "link", "in/a.png"):
        with pytest.raises(OutputError, match=r"overwrite the input in/a\.png.*--overwrite-inputs"):
            plan(["in/a.png"], Path(output))
        (job,) = plan(["in/a.png"], Path(output), overwrite_inputs=True)
        assert job.target.samefile("in/a.png")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("missing.png", "missing.png does not exist"),
        ("empty", "no picture in the folder empty"),
        ("empty/*.png", r"no picture matches empty/\*\.png"),
        ("nowhere/**/*.png", "no picture matches"),
        ("broken.png", "broken.png is a symbolic link to nothing"),
        ("x" * 300, "xxx: File name too long"),
        ("x" * 300 + "*", "no picture matches"),
    ],
)
def test_inputs_that_hold_nothing_are_named(name: str, words: str) -> None:
    Path("empty").mkdir()
    Path("broken.png").symlink_to("nothing.png")
    with pytest.raises(InputError, match=words):
        plan([name], Path("out"))


def test_outputs_that_cannot_be() -> None:
    make("in/a.png", "in/b.png", "file")
    with pytest.raises(OutputError, match=r"file is a file; 2 pictures need a folder"):
        plan(["in"], Path("file"))
    with pytest.raises(OutputError, match=r"out\.png names one picture, but there are 2"):
        plan(["in"], Path("out.png"))
    with pytest.raises(OutputError, match="suffix must be part of a file name"):
        plan(["in"], Path("out"), suffix="/../x")


def test_shards_share_the_work_without_gaps() -> None:
    make(*(f"in/{number}.png" for number in range(7)))
    jobs = plan(["in"], Path("out"))
    parts = [shard(jobs, index, 3) for index in (1, 2, 3)]
    assert sorted(map(len, parts)) == [2, 2, 3]
    assert sorted(str(job.source) for part in parts for job in part) == [
        str(job.source) for job in jobs
    ]
    with pytest.raises(ValueError, match="got 4/3"):
        shard(jobs, 4, 3)
