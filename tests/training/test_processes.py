"""Two processes on the CPU, whole (DDP) and sharded (FSDP), against one on the same batches."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from clipweather_fast.models import pretrained
from clipweather_fast.training.build import trainer_of
from clipweather_fast.training.journal import read_log
from training_runs import MODEL, configuration, last_state, photographs, settings

LAUNCH = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
COMMAND = ["--nproc-per-node", "2", "-m", "clipweather_fast.cli", "train"]

#: No drop path, whose choices depend on the process; Adam's steps in proportion to the gradient.
SAME: dict[str, dict[str, Any]] = {
    "run": {"epochs": 2, "clip": 0.05},
    "model": {**MODEL, "drop_path_rate": 0.0},
    "data": {"batch": 4, "samples_per_epoch": 16},
    "optimizer": {"lr": 1e-3, "eps": 1e-2},
    "log": {"every": 2, "pictures": 4},
    "checkpoint": {"every": 4},
}


def launched(path: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*LAUNCH, *COMMAND, str(path), *more], capture_output=True, text=True, timeout=150
    )


@pytest.mark.parametrize(
    ("sharding", "precision", "apart", "reported"),
    [
        ("none", "float32", 2e-6, 1e-4),
        ("fsdp", "float32", 2e-6, 1e-4),
        # Two processes round sums of gradients at other places than one: 4e-6 on this network.
        ("fsdp", "bfloat16", 2e-5, 1e-2),
    ],
)
def test_two_processes_are_one_on_the_same_batches(
    tmp_path: Path, sharding: str, precision: str, apart: float, reported: float
) -> None:
    photographs(tmp_path / "photographs")
    held_out = {**SAME["data"], "validation_clean": [str(tmp_path / "photographs")]}
    sections = {**SAME, "data": {**held_out, "validation_pictures": 3}}
    sections["run"] = {**SAME["run"], "precision": precision}
    one = configuration(tmp_path, **sections)
    assert trainer_of(one).fit().finished
    path = tmp_path / "two.yaml"
    output = tmp_path / "two"
    run = {**sections["run"], "output": str(output), "sharding": sharding}
    path.write_text(yaml.safe_dump(settings(tmp_path, **{**sections, "run": run})))
    done = launched(path)
    assert done.returncode == 0, done.stderr[-3000:]
    expected, found = last_state(tmp_path / "run"), last_state(output)
    assert found.keys() == expected.keys()
    begin = configuration(tmp_path, **sections)
    moved = 0.0
    from clipweather_fast.training import RestorationTask

    for name, tensor in RestorationTask(begin).student.state_dict().items():
        moved = max(moved, float((expected[f"student/{name}"] - tensor).abs().max()))
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=apart, msg=name)
    assert moved > 50 * apart
    logs = [read_log(folder / "log.jsonl") for folder in (tmp_path / "run", output)]
    for a, b in zip(*logs, strict=True):
        assert (a["kind"], a["step"]) == (b["kind"], b["step"])
        name = "loss" if a["kind"] == "train" else "psnr"
        assert b[name] == pytest.approx(a[name], rel=reported)
    weights = dict(pretrained(output / "model").named_parameters())
    for name, tensor in pretrained(tmp_path / "run" / "model").named_parameters():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-3, atol=apart, msg=name)


def test_a_scheduler_that_stops_all_processes_leaves_a_checkpoint(tmp_path: Path) -> None:
    """Each gets the signal, and the training ones a copy of it from their launcher."""
    photographs(tmp_path / "photographs")
    # Steps long enough for the copy to arrive within the one that the signal did.
    data = {"batch": 128, "samples_per_epoch": 128}
    sections = {**SAME, "run": {"epochs": 2000, "accumulate": 64}, "data": data}
    sections |= {"checkpoint": {"every": 100000}, "log": {"every": 1}}
    path = tmp_path / "long.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, **sections)))
    log = tmp_path / "run" / "log.jsonl"
    with subprocess.Popen([*LAUNCH, *COMMAND, str(path)], stderr=subprocess.PIPE, text=True) as run:
        try:
            deadline = time.monotonic() + 90
            while not log.exists() and run.poll() is None and time.monotonic() < deadline:
                time.sleep(0.05)
            assert run.poll() is None, run.communicate()[1][-3000:]
            # They are in sessions of their own: no group holds all.
            training = _children(run.pid)
            assert len(training) == 2
            for process in training:
                os.kill(process, signal.SIGTERM)
            time.sleep(0.1)  # Python takes signals that come at once for one
            os.kill(run.pid, signal.SIGTERM)
            _, printed = run.communicate(timeout=60)
        finally:
            if run.poll() is None:
                for process in (*_children(run.pid), run.pid):
                    os.kill(process, signal.SIGKILL)
    assert "SIGTERM: stopping after this step" in printed, printed[-3000:]
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("*.pt")
    step = int(checkpoint.stem.removeprefix("step-"))
    assert 0 < step < 4000
    assert len(last_state(tmp_path / "run")) > 0


def _children(process: int) -> list[int]:
    listed = Path(f"/proc/{process}/task/{process}/children").read_text()
    return [int(number) for number in listed.split()]
