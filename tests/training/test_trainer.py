"""The loop: it learns, goes on exactly, survives signals, kills, full disks and bad batches."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from clipweather_fast.models import pretrained
from clipweather_fast.training import NonFiniteLoss, Progress, Trainer, TrainingConfig
from clipweather_fast.training import checkpoint as checkpoint_module
from clipweather_fast.training.build import held_out_of, samples_of, trainer_of
from clipweather_fast.training.feed import Feed
from clipweather_fast.training.journal import read_log
from clipweather_fast.training.restoration import RestorationTask
from clipweather_fast.training.watch import Silent
from command import COMMAND
from training_runs import (
    assert_same_state,
    configuration,
    last_state,
    photographs,
    settings,
    tensors,
)


class Stopping(Silent):
    """Sends a signal to this process after a step."""

    def __init__(self, after: int, number: signal.Signals = signal.SIGTERM) -> None:
        self.after, self.number, self.words = after, number, ""

    def stepped(self, step: int) -> None:
        if step == self.after:
            os.kill(os.getpid(), self.number)

    def say(self, words: str) -> None:
        self.words += words + "\n"


# ---- it learns, and leaves what it should -------------------------------------------------------


def test_a_run_leaves_a_network_a_log_and_pictures(tmp_path: Path) -> None:
    config = configuration(
        tmp_path,
        data={"validation_clean": [str(tmp_path / "photographs")], "validation_pictures": 3},
        log={"every": 2, "pictures": 5, "tensorboard": True},
    )
    outcome = trainer_of(config).fit()
    assert outcome.finished
    assert outcome.step == 10
    output = tmp_path / "run"
    network = pretrained(output / "model")
    state = last_state(output)
    for name, tensor in network.state_dict().items():
        averaged = state.get(f"ema/network.{name}", state[f"student/network.{name}"])
        assert torch.equal(tensor, averaged), name
    records = read_log(output / "log.jsonl")
    kinds = [(record["kind"], record["step"]) for record in records]
    assert kinds == sorted(
        [("train", i) for i in (2, 4, 6, 8, 10)] + [("validation", i) for i in (5, 10)],
        key=lambda kind: (kind[1], kind[0]),
    )
    assert records[0]["parts"].keys() == {"smooth_l1", "ssim", "psnr"}
    assert records[0]["loss"] == pytest.approx(sum(records[0]["parts"].values()))
    assert {"lr", "pictures_per_second", "memory_mib", "gradient_norm"} <= records[0].keys()
    assert {"psnr", "psnr before", "ssim", "psnr snow"} <= records[2].keys()
    for name in ("curves.png", "sheets/step-000000010.png", "config.yaml"):
        assert (output / name).stat().st_size > 500
    assert list((output / "tensorboard").iterdir())


def test_it_overfits_one_batch(tmp_path: Path) -> None:
    config = configuration(
        tmp_path,
        run={"epochs": 180},
        model={"dims": [16, 32, 80, 128], "decoder_tail": [16, 16], "drop_path_rate": 0.0},
        data={"samples_per_epoch": 2, "flips": False},
        losses={"ssim": 0.0, "psnr": 0.05},
        optimizer={"lr": 3e-3},
        schedule={"kind": "cosine", "warmup": 10},
        log={"every": 10},
        checkpoint={"every": 1000},
    )
    samples = samples_of(config)
    samples.set_epoch = lambda epoch: None  # type: ignore[method-assign]
    Trainer(RestorationTask(config), config, samples).fit()
    records = read_log(tmp_path / "run" / "log.jsonl")
    first, last = ((1 - records[i]["parts"]["psnr"] / 0.05) * 40 for i in (0, -1))
    assert first < 30
    assert last > 35


# ---- it goes on exactly -------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [3, 5], ids=["in an epoch", "between epochs"])
def test_stopped_and_resumed_is_uninterrupted(tmp_path: Path, stop_after: int) -> None:
    sections: dict[str, Mapping[str, Any]] = {
        "data": {"cutmix": 0.7, "workers": 1},
        "synthesis": {"clear": 0.2, "strength": [0.5, 1.5]},
        "checkpoint": {"every": 100},
        "schedule": {"kind": "cosine", "warmup": 3},
        "log": {"every": 4},
    }
    whole = configuration(tmp_path, **sections)
    assert trainer_of(whole).fit().finished
    sections["run"] = {"output": str(tmp_path / "other")}
    parts = configuration(tmp_path, **sections)
    outcome = trainer_of(parts, Stopping(stop_after)).fit()
    assert (outcome.step, outcome.finished, outcome.signal) == (stop_after + 1, False, 15)
    torch.manual_seed(99)
    torch.rand(3)
    watch = Stopping(-1)
    assert trainer_of(parts, watch).fit().finished
    assert f"after step {stop_after + 1} of 10" in watch.words
    assert_same_state(tmp_path / "run", tmp_path / "other")
    one, other = (read_log(tmp_path / name / "log.jsonl") for name in ("run", "other"))
    for a, b in zip(one, other, strict=True):
        assert {k: a[k] for k in ("step", "loss", "parts", "lr", "gradient_norm")} == {
            k: b[k] for k in ("step", "loss", "parts", "lr", "gradient_norm")
        }


def test_sigint_stops_too_and_handlers_come_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    config = configuration(tmp_path)
    outcome = trainer_of(config, Stopping(1, signal.SIGINT)).fit()
    assert (outcome.finished, outcome.signal) == (False, signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


class Copying(Stopping):
    """Sends a second signal while the first is not yet answered."""

    def __init__(self, second: signal.Signals, later: float = 0.0) -> None:
        super().__init__(1)
        self.second, self.later = second, later

    def stepped(self, step: int) -> None:
        if step == self.after:
            os.kill(os.getpid(), self.number)
            time.sleep(self.later)
            os.kill(os.getpid(), self.second)


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_copies_of_a_signal_are_one_request(tmp_path: Path, second: signal.Signals) -> None:
    """As a launcher passes on what a scheduler has sent to all of its processes."""
    watch = Copying(second)
    outcome = trainer_of(configuration(tmp_path), watch).fit()
    assert (outcome.step, outcome.finished, outcome.signal) == (2, False, signal.SIGTERM)
    assert watch.words.count("stopping after this step") == 1
    assert len(list((tmp_path / "run" / "checkpoints").glob("*.pt"))) == 1


def test_who_asks_again_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipweather_fast.training.trainer.SAME_REQUEST", 0.05)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        trainer_of(configuration(tmp_path), Copying(signal.SIGINT, later=0.1)).fit()
    assert signal.getsignal(signal.SIGINT) == before
    assert not list((tmp_path / "run" / "checkpoints").glob("*.pt"))


def test_killed_at_any_moment_and_started_again_is_uninterrupted(tmp_path: Path) -> None:
    # Tests before this one may have set another number of threads than a new process has.
    alike = {"epochs": 4, "threads": 1}
    sections = {"run": alike, "checkpoint": {"every": 1}}
    assert trainer_of(configuration(tmp_path, **sections)).fit().finished
    sections["run"] = {**alike, "output": str(tmp_path / "killed")}
    path = tmp_path / "killed.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path, **sections)))
    checkpoints = tmp_path / "killed" / "checkpoints"
    killed = 0
    for pause in (0.0, 0.07):  # while a checkpoint has just been named, and in a step
        known = set(checkpoints.glob("*.pt"))
        with subprocess.Popen([*COMMAND, "train", str(path)], stderr=subprocess.DEVNULL) as run:
            try:
                while run.poll() is None and len(set(checkpoints.glob("*.pt")) - known) < 2:
                    time.sleep(0.002)
                time.sleep(pause)
            finally:
                run.kill()
        killed += run.returncode == -signal.SIGKILL
    assert killed >= 1
    done = subprocess.run([*COMMAND, "train", str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "going on from" in done.stderr
    assert_same_state(tmp_path / "run", tmp_path / "killed")


def test_other_settings_do_not_go_on(tmp_path: Path) -> None:
    trainer_of(configuration(tmp_path)).fit()
    changed = configuration(tmp_path, optimizer={"lr": 5e-4}, run={"epochs": 3}, log={"every": 7})
    with pytest.raises(ValueError, match=r"other settings.*resume=changed") as caught:
        trainer_of(changed).fit()
    assert "optimizer.lr: 0.001 then, 0.0005 now" in str(caught.value)
    assert "log.every" not in str(caught.value)
    with pytest.raises(ValueError, match="holds a run already"):
        trainer_of(configuration(tmp_path, run={"resume": "never"})).fit()
    allowed = configuration(tmp_path, run={"epochs": 3, "resume": "changed"})
    assert trainer_of(allowed).fit().step == 15


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    holding = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX);"
        "print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holding, str(folder / "lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(ValueError, match=r"another process trains in .*run"):
            trainer_of(configuration(tmp_path)).fit()
        other.kill()
    assert trainer_of(configuration(tmp_path)).fit().finished


def test_a_finished_run_is_finished(tmp_path: Path) -> None:
    trainer_of(configuration(tmp_path)).fit()
    before = last_state(tmp_path / "run")
    assert trainer_of(configuration(tmp_path)).fit().finished
    after = last_state(tmp_path / "run")
    assert all(torch.equal(before[name], after[name]) for name in before)


# ---- disks and damage ---------------------------------------------------------------------------


def test_the_newest_whole_checkpoint_is_taken(tmp_path: Path) -> None:
    trainer_of(configuration(tmp_path)).fit()
    older, newest = sorted((tmp_path / "run" / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    watch = Stopping(-1)
    with pytest.warns(UserWarning, match=r"is damaged: the check sum of .* is wrong"):
        trainer_of(configuration(tmp_path), watch).fit()
    assert older.name in watch.words
    for path in (tmp_path / "run" / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:1000])
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(ValueError, match="every checkpoint is damaged"),
    ):
        trainer_of(configuration(tmp_path)).fit()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trainer_of(configuration(tmp_path)).fit().finished
    fits = checkpoint_module.written_aside
    tries: list[Path] = []

    def full(path: Path) -> Any:
        tries.append(path)
        if len(tries) in (3, 4):  # of the checkpoints after steps 2, 4, 6, 8, 10
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        return fits(path)

    monkeypatch.setattr(checkpoint_module, "written_aside", full)
    other = configuration(tmp_path, run={"output": str(tmp_path / "other")})
    watch = Stopping(-1)
    assert trainer_of(other, watch).fit().finished
    assert watch.words.count("cannot be written: [Errno 28] No space left on device") == 2
    assert_same_state(tmp_path / "run", tmp_path / "other")


def test_a_disk_that_is_full_at_the_end_says_so_and_keeps_the_last_checkpoint(
    tmp_path: Path,
) -> None:
    """The limit on the size of files is a full disk to the process that has it."""
    path = tmp_path / "a.yaml"
    path.write_text(yaml.safe_dump(settings(tmp_path)))
    photographs(tmp_path / "photographs")
    assert subprocess.run([*COMMAND, "train", str(path)], capture_output=True).returncode == 0
    kept = {p.name: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").iterdir()}
    limited = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000));"
        "from clipweather_fast.cli import main; main()"
    )
    more = ["train", str(path), "run.epochs=3", "run.resume=changed"]
    done = subprocess.run(
        [sys.executable, "-P", "-c", limited, *more], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert {p.name: p.read_bytes() for p in (tmp_path / "run" / "checkpoints").iterdir()} == kept


def test_the_log_of_an_interrupted_run_is_cut_to_the_checkpoint(tmp_path: Path) -> None:
    config = configuration(tmp_path, checkpoint={"every": 4})
    trainer_of(config).fit()
    log = tmp_path / "run" / "log.jsonl"
    whole = read_log(log)
    (tmp_path / "run" / "checkpoints" / "step-000000010.pt").unlink()
    with log.open("a") as file:
        file.write('{"kind": "train", "st')
    trainer_of(config).fit()
    again = read_log(log)
    assert [r["step"] for r in again] == [r["step"] for r in whole]
    assert [r["loss"] for r in again] == [r["loss"] for r in whole]
    assert all(json.loads(line) for line in log.read_text().splitlines())


# ---- bad batches --------------------------------------------------------------------------------


class Breaking(RestorationTask):
    """Its loss is infinite in step 3."""

    def parts(self, batch: dict[str, Tensor], progress: Progress) -> dict[str, Tensor]:
        parts = super().parts(batch, progress)
        if progress.step == 3:
            parts["ssim"] = parts["ssim"] * torch.inf
        return parts


def test_a_loss_that_is_not_finite_stops_and_saves_the_batch(tmp_path: Path) -> None:
    config = configuration(tmp_path)
    trainer = Trainer(Breaking(config), config, samples_of(config))
    with pytest.raises(NonFiniteLoss, match=r"step 3: the loss is not finite .*ssim inf") as caught:
        trainer.fit()
    path = tmp_path / "run" / "nonfinite-000000003-0.pt"
    assert str(path) in str(caught.value)
    content = torch.load(path, weights_only=True)
    assert content["micro_batches"][0]["truth"].shape == (2, 3, 64, 64)
    # The weights are those before the step: the same as after three steps.
    three = configuration(tmp_path, run={"output": str(tmp_path / "three")})
    trainer_of(three, Stopping(2)).fit()
    expected = last_state(tmp_path / "three")
    for name, tensor in tensors(content["student"]).items():
        assert torch.equal(tensor, expected[f"student/{name}"]), name
    names = [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()]
    assert names == ["step-000000002.pt"]


# ---- which pictures -----------------------------------------------------------------------------


class Numbers:
    """A data set of its own indices."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"index": torch.tensor(index)}

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 3), (2, 1), (2, 3), (6, 1)])
def test_a_step_sees_the_same_pictures_however_it_is_divided(world: int, accumulate: int) -> None:
    data = TrainingConfig.from_dict({"data": {"batch": 6, "workers": 0}}).data
    one = Feed(Numbers(40), data, seed=1)
    feeds = [
        Feed(Numbers(40), data, seed=1, accumulate=accumulate, rank=rank, world=world)
        for rank in range(world)
    ]
    assert one.steps_per_epoch == 6
    expected = [sorted(step[0]["index"].tolist()) for step in one.steps(2)]
    found: list[list[int]] = [[] for _ in expected]
    for feed in feeds:
        for i, step in enumerate(feed.steps(2)):
            assert len(step) == accumulate
            found[i] += [index for batch in step for index in batch["index"].tolist()]
    assert [sorted(step) for step in found] == expected
    assert len({index for step in expected for index in step}) == 36
    later = [sorted(step[0]["index"].tolist()) for step in one.steps(2, done=4)]
    assert later == expected[4:]


def test_a_batch_that_cannot_be_divided_is_named() -> None:
    data = TrainingConfig.from_dict({"data": {"batch": 6, "workers": 0}}).data
    with pytest.raises(ValueError, match=r"processes × run\.accumulate = 2 × 2, got 6"):
        Feed(Numbers(40), data, seed=1, accumulate=2, world=2)
    with pytest.raises(ValueError, match=r"data\.batch is 6, but there are 5 pictures"):
        Feed(Numbers(5), data, seed=1)


def test_without_data_there_is_nothing_to_learn_from(tmp_path: Path) -> None:
    config = configuration(tmp_path, data={"clean": []})
    with pytest.raises(ValueError, match=r"nothing to learn from; give data\.pairs=FOLDER"):
        samples_of(config)
    assert held_out_of(config) is None


def test_accumulation_is_the_same_step(tmp_path: Path) -> None:
    sections = {
        "model": {"drop_path_rate": 0.0},
        "data": {"batch": 4},
        "optimizer": {"lr": 1e-3, "eps": 1e-2},  # steps in proportion to the gradient
    }
    trainer_of(configuration(tmp_path, **sections)).fit()
    run = {"output": str(tmp_path / "other"), "accumulate": 2}
    trainer_of(configuration(tmp_path, **sections, run=run)).fit()
    one, other = last_state(tmp_path / "run"), last_state(tmp_path / "other")
    for name, tensor in one.items():
        if name.startswith("student/"):
            torch.testing.assert_close(other[name], tensor, rtol=0, atol=2e-5, msg=name)
