"""A run's log: a line of JSON per report, and what else is to hear of it."""

from __future__ import annotations

import json
import math
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from clipweather_fast.restore.aside import written_aside
from clipweather_fast.training.sections import LogSection

__all__ = ["Journal", "read_log"]


class _Tracker(Protocol):
    def add(self, step: int, values: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Journal:
    """``log.jsonl`` in a run's folder, TensorBoard and Weights & Biases if asked for.

    A disk that is full costs lines of the log, with one warning, and not the run.

    Args:
        folder: of the run; it exists.
        section: which trackers.
        config: the run's configuration, for the trackers.
        step: the step that the run goes on from. Later lines, which an interrupted run wrote after
            its last checkpoint, are taken out: they will be written again.
    """

    def __init__(
        self, folder: Path, section: LogSection, config: Mapping[str, Any], step: int = 0
    ) -> None:
        self.path = folder / "log.jsonl"
        self._failed = False
        self._cut(step)
        self._trackers: list[_Tracker] = []
        if section.tensorboard:
            self._trackers.append(_TensorBoard(folder / "tensorboard", step))
        if section.wandb is not None:
            self._trackers.append(_WandB(section.wandb, folder, config))

    def write(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Adds a line ``{"kind": …, "step": …, **values}``."""
        line = json.dumps({"kind": kind, "step": step, **values}, default=str)
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        except OSError as error:
            if not self._failed:
                warnings.warn(f"the log cannot be written: {error}", stacklevel=2)
            self._failed = True
        numbers = _flat(values)
        for tracker in self._trackers:
            tracker.add(step, {f"{kind}/{name}": value for name, value in numbers.items()})

    def close(self) -> None:
        """Ends the trackers."""
        for tracker in self._trackers:
            tracker.close()

    def _cut(self, step: int) -> None:
        if not self.path.exists():
            return
        kept = [record for record in read_log(self.path) if record["step"] <= step]
        text = "".join(json.dumps(record) + "\n" for record in kept)
        if text == self.path.read_text(encoding="utf-8", errors="replace"):
            return
        with written_aside(self.path) as file:
            file.write(text.encode())


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log, without a last line that was cut off."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """The finite numbers by their path."""
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{name}/")
        elif isinstance(value, (int, float)) and math.isfinite(value):
            found[prefix + name] = float(value)
    return found


class _TensorBoard:
    def __init__(self, folder: Path, step: int) -> None:
        try:
            import tensorboard
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "log.tensorboard needs TensorBoard: pip install 'clipweather_fast[tensorboard]'"
            ) from error
        del tensorboard  # PyTorch's writer says less clearly that it is missing
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class _WandB:
    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError(
                "log.wandb needs Weights & Biases: pip install 'clipweather_fast[wandb]'"
            ) from error
        self._run = wandb.init(
            project=project,
            dir=str(folder),
            name=folder.resolve().name,
            id=_identity(folder / "wandb-id.txt"),
            resume="allow",
            config=dict(config),
        )

    def add(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


def _identity(path: Path) -> str:
    """The run's name among all of its project, made once.

    Not that of its folder: others have one of that name elsewhere, and would go on with this run.
    """
    if not path.exists():
        with written_aside(path) as file:
            file.write(secrets.token_hex(8).encode())
    return path.read_text(encoding="utf-8").strip()
