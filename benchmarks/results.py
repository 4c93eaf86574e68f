"""Result files: written whole or not at all, and replaced only by a complete run.

While a run goes on, what it has measured so far lies under ``build/benchmarks/<machine>/``. When
all cases of a topic have passed, its file under ``benchmarks/results/<machine>/`` is replaced.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

__all__ = ["RESULTS", "Store", "load_all", "write_atomically"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PARTIAL = ROOT / "build" / "benchmarks"
SCHEMA = 1


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)


class Store:
    """The results of one run on one machine, by topic."""

    def __init__(self, machine: str, header: dict[str, Any], results: Path = RESULTS) -> None:
        self._header, self._results = header, results / machine
        self._partial = PARTIAL / machine
        self._cases: dict[str, list[dict[str, Any]]] = {}

    def add(self, topic: str, case: dict[str, Any]) -> None:
        """Keeps one case, at once on disk."""
        self._cases.setdefault(topic, []).append(case)
        write_atomically(self._partial / f"{topic}.json", self._text(topic, complete=False))

    def count(self, topic: str) -> int:
        return len(self._cases.get(topic, []))

    def finish(self, topic: str) -> Path:
        """Makes a topic's cases the committed result of this machine."""
        path = self._results / f"{topic}.json"
        write_atomically(path, self._text(topic, complete=True))
        (self._partial / f"{topic}.json").unlink()
        return path

    def _text(self, topic: str, complete: bool) -> str:
        whole = {"schema": SCHEMA, "topic": topic, "complete": complete, **self._header}
        whole["cases"] = self._cases[topic]
        return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def load_all(results: Path = RESULTS) -> list[dict[str, Any]]:
    """Every contest's result file, with the name of its machine's folder, in a fixed order."""
    found = []
    for path in sorted(results.glob("*/*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["schema"] != SCHEMA:
            raise ValueError(f"{path}: schema {content['schema']}, this report reads {SCHEMA}")
        if "figures" in content:  # of a script: see benchmarks/figures.py
            continue
        found.append({"folder": path.parent.name, **content})
    return found
