"""Result files of scripts: figures that are no contest between contestants, one file per topic.

They lie beside the contests' files under ``benchmarks/results/<machine>/`` and hold the same
machine, versions and commit; the report's tables leave them out, documents name them.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from benchmarks import machine
from benchmarks.results import RESULTS, SCHEMA, write_atomically

__all__ = ["write_figures"]


def write_figures(
    topic: str, figures: dict[str, Any], device: str = "cpu", results: Path = RESULTS, **facts: Any
) -> Path:
    """Writes ``<results>/<machine>/<topic>.json`` and returns its path.

    Args:
        topic: the file's name.
        figures: what was measured; names of figures say their units.
        device: "cpu" or "cuda".
        results: the folder of all machines.
        facts: what else a reader has to know: sizes, threads, rounds.
    """
    content = {
        "schema": SCHEMA,
        "topic": topic,
        "machine": machine.facts(device),
        "versions": machine.versions(),
        **machine.commit(),
        "device": device,
        "load_average": round(os.getloadavg()[0], 2),
        **facts,
        "figures": figures,
    }
    path = results / machine.name(device) / f"{topic}.json"
    write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
