"""``clipweather train`` as a stranger runs it."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from clipweather_fast.models import pretrained
from command import COMMAND, clipweather, here, words
from training_runs import fresh_accelerate, photographs, settings

__all__ = ["fresh_accelerate"]  # for the runs in this process


@pytest.fixture
def config(tmp_path: Path) -> Path:
    photographs(tmp_path / "photographs")
    path = tmp_path / "a run.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)))
    return path


def test_train_says_what_happens_and_leaves_the_network(config: Path, tmp_path: Path) -> None:
    done = clipweather("train", config, "run.epochs=1", "log.every=2")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0].startswith("step 2 of 5: loss ")
    for part in ("smooth_l1 ", "ssim ", "psnr ", "pictures/s", "MiB", "left"):
        assert part in lines[0]
    assert lines[-1] == f"the network is in {tmp_path / 'run' / 'model'}"
    pretrained(tmp_path / "run" / "model")


def test_dry_run_prints_and_trains_nothing(config: Path, tmp_path: Path) -> None:
    done = here("train", config, "run.epochs=7", "--dry-run")
    assert done.exit_code == 0, done.stderr
    text, found = done.stdout.split("parameters: ")
    assert yaml.safe_load(text)["run"]["epochs"] == 7
    assert found.startswith("trained ")
    for part in ("memory: ", "optimizer ", "kept for the gradient ", "s per step of 2 pictures"):
        assert part in found
    assert not (tmp_path / "run").exists()


def test_sigterm_saves_and_stops_and_the_same_command_goes_on(config: Path, tmp_path: Path) -> None:
    arguments = ["train", str(config), "run.epochs=2000", "checkpoint.every=100000"]
    run = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.send_signal(signal.SIGTERM)
    _, printed = run.communicate(timeout=60)
    assert run.returncode == 128 + signal.SIGTERM, printed
    assert "SIGTERM: stopping after this step" in printed
    assert "the same command goes on" in printed
    (path,) = (tmp_path / "run" / "checkpoints").iterdir()
    step = int(path.stem.removeprefix("step-"))
    again = here("train", config, f"run.epochs={step // 5 + 1}", "run.resume=changed")
    assert again.exit_code == 0, again.stderr
    assert f"after step {step} of" in again.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["run.epoch=3"], "there is no key run.epoch; did you mean run.epochs?"),
        (["model.num_kernel=3"], "did you mean model.num_kernels?"),
        (["run.epochs"], "must be section.key=value"),
    ],
)
def test_a_wrong_setting_is_named(config: Path, arguments: list[str], expected: str) -> None:
    done = here("train", config, *arguments)
    assert done.exit_code == 2
    assert expected in words(done.stderr)


def test_what_fails_is_one_clear_line(config: Path, tmp_path: Path) -> None:
    done = here("train", config, f"data.clean=[{tmp_path / 'nothing'}]")
    assert done.exit_code == 1
    assert str(tmp_path / "nothing") in done.stderr
    assert here("train", tmp_path / "none.yaml").exit_code == 2
