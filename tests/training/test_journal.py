"""What Weights & Biases is told, by a stand-in for its package, which wants an account."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from clipweather_fast.training.build import trainer_of
from clipweather_fast.training.journal import Journal, read_log
from clipweather_fast.training.sections import LogSection
from training_runs import configuration


class Tracked(ModuleType):
    """The part of the package ``wandb`` that is called, and what it was told."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.begun: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = 0

    def init(self, **arguments: Any) -> Tracked:
        json.dumps(arguments["config"])  # as the package does it
        self.begun.append(arguments)
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Tracked:
    package = Tracked()
    monkeypatch.setitem(sys.modules, "wandb", package)
    return package


def test_a_run_reports_and_goes_on_in_the_same_place(wandb: Tracked, tmp_path: Path) -> None:
    log = {"every": 1, "pictures": 0, "wandb": "a project"}
    for epochs in (1, 2):
        run = {"output": str(tmp_path / "run"), "epochs": epochs, "resume": "changed"}
        settings = configuration(tmp_path, log=log, run=run)
        assert trainer_of(settings).fit().finished
    first, second = wandb.begun
    assert (first["project"], first["name"], first["dir"]) == (
        "a project",
        "run",
        str(tmp_path / "run"),
    )
    assert first["resume"] == "allow"
    assert first["config"]["run"]["epochs"] == 1
    assert first["id"] == second["id"]
    assert wandb.finished == 2
    records = [r for r in read_log(tmp_path / "run" / "log.jsonl") if r["kind"] == "train"]
    assert [step for step, _ in wandb.logged] == [record["step"] for record in records]
    for (_, values), record in zip(wandb.logged, records, strict=True):
        assert values["train/loss"] == record["loss"]


def test_folders_of_one_name_are_two_runs(wandb: Tracked, tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place / "run: 12").mkdir(parents=True)
        Journal(tmp_path / place / "run: 12", LogSection(wandb="project"), {}).close()
    one, other = (arguments["id"] for arguments in wandb.begun)
    assert one != other
    assert one.isalnum()  # it may hold no colon, slash or question mark


def test_without_the_package_the_way_out_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match=r"pip install 'clipweather_fast\[wandb\]'"):
        Journal(tmp_path, LogSection(wandb="project"), {})
