"""The command ``clipweather``, as a stranger meets it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import clipweather_fast
from clipweather_fast import demo, installation, ops
from command import here


def clipweather(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "clipweather_fast", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


def test_version() -> None:
    done = clipweather("--version")
    assert (done.returncode, done.stdout) == (
        0,
        f"clipweather_fast {clipweather_fast.__version__}\n",
    )


def test_help_names_every_command_and_what_the_package_is_for() -> None:
    done = here("--help")
    words = re.sub(r"[\s│]+", " ", done.stdout)
    assert done.exit_code == 0
    assert "Remove snow, rain and haze from pictures" in words
    for command in (
        "restore",
        "video",
        "classify",
        "models",
        "export",
        "env",
        "demo",
        "data",
        "eval",
    ):
        assert f" {command} " in words


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--colour",), "--colour"),
        (("env", "--all"), "--all"),
        (("demo", "--threads", "0"), "--threads"),
        (("demo", "no-such-picture.jpg"), "no-such-picture.jpg"),
    ],
)
def test_wrong_words_exit_2_and_are_named(arguments: tuple[str, ...], named: str) -> None:
    done = here(*arguments)
    assert done.exit_code == 2
    assert named in done.stderr


def test_a_wrong_command_exits_2_and_is_named() -> None:
    done = clipweather("dmeo")
    assert done.returncode == 2
    assert "dmeo" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("shell", ["bash", "fish"])
def test_completion_offers_commands_and_networks(shell: str) -> None:
    def offered(*typed: str) -> str:
        line = " ".join(("clipweather", *typed))
        asked = {
            "_CLIPWEATHER_COMPLETE": f"complete_{shell}",
            "_TYPER_COMPLETE_ARGS": line,
            "_TYPER_COMPLETE_FISH_ACTION": "get-args",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(typed)),
        }
        return str(here(**asked).stdout)

    assert "restore" in offered("rest")
    assert "clipweather_tiny" in offered("restore", "--model", "clipweather_t")


def test_env_answers_for_every_operator_and_backend() -> None:
    done = clipweather("env")
    assert done.returncode == 0, done.stderr
    assert f"torch            {torch.__version__}" in done.stdout
    _, _, listing = done.stdout.partition("operators on cpu, float32:\n")
    blocks = re.findall(r"^  (\w+)\n((?:    .*\n)+)", listing, re.MULTILINE)
    cpu = dict(blocks[: len(installation.SAMPLES)])
    assert sorted(cpu) == sorted(installation.SAMPLES)
    for answers in cpu.values():
        rows = [line.split(maxsplit=1) for line in answers.splitlines()]
        assert [name for name, _ in rows] == list(ops.BACKENDS)
        for _, answer in rows:
            assert answer in ("yes", "yes (chosen)") or re.fullmatch(r"no: .{20,}", answer)
        assert sum(answer == "yes (chosen)" for _, answer in rows) == 1


@pytest.mark.parametrize("operator", sorted(installation.SAMPLES))
def test_every_sample_is_a_call_that_works(operator: str) -> None:
    getattr(ops, operator)(*installation.sample(operator, "cpu"))


def test_demo_of_something_that_is_no_picture_says_so(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no picture")
    done = here("demo", text)
    assert done.exit_code == 1
    assert "notes.txt" in done.stderr


def test_demo_prints_what_was_gained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "SECONDS_PER_ROW", 0.0)
    picture = tmp_path / "small.png"
    Image.effect_noise((96, 64), 40).convert("RGB").save(picture)
    done = here("demo", picture, "--threads", "1")
    assert done.exit_code == 0, done.stderr
    assert "small.png, 96 x 64" in done.stdout
    assert re.search(r"SARFFN.*forward .* ms .* x", done.stdout)
