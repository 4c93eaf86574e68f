"""The tables of docs/performance.md: what users may expect, from the committed results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.results import RESULTS
from benchmarks.rows import Row, rows

__all__ = ["TOPIC", "block"]

TOPIC = "pictures_"
#: Heads of the columns, and how the contestants' names begin of whom the fastest counts.
RIVALS = {
    "PyTorch": "eager",
    "`torch.compile`": "compile",
    "ONNX Runtime": "onnxruntime",
    "OpenVINO": "openvino",
}
#: Behind a case that was too slow for a second call.
FIRST = " (first call)"
#: Ends the topics that were measured with glibc's allocator as it comes.
AS_PEOPLE_RUN_IT = "_default_malloc"
#: The field's baseline among their contestants.
BASELINE = "transweather float32"
NOTHING = "Nothing has been measured yet.\n"


def _order(row: Row) -> tuple[Any, ...]:
    size = row.case["size"]
    return size["network"], size["given_prior"], size["h"] * size["w"], size["n"]


def _times(ratio: float | None) -> str:
    return "–" if ratio is None else f"{ratio:.2f}×"


def _line(row: Row) -> str:
    size = row.case["size"]
    roof = row.roof
    first = row.case["contestants"]["ours"].get("first_call", False)
    cells = [
        size["name"] + FIRST * first,
        row.case["dtype"],
        f"{size['n'] / row.own_seconds:.3g}",
        *(_times(row.best(kind)) for kind in RIVALS.values()),
        "–" if roof is None else f"{roof[1]:.0%}",
    ]
    return "| " + " | ".join(cells) + " |"


def _speeds(contents: list[dict[str, Any]]) -> list[str]:
    """One machine's table of pictures per second."""
    found = [row for content in contents for row in rows(content)]
    one = contents[0]
    threads = "one thread" if one["threads"] == 1 else f"{one['threads']} threads"
    commits = sorted({content["commit"][:10] for content in contents})
    which = ", ".join(f"`{commit}`" for commit in commits)
    where = one["machine"].get("gpu") or f"{one['machine']['cpu']}, {threads}"
    heads = ["", "precision", "pictures/s", *RIVALS, "of the roof"]
    return [
        f"{where}; PyTorch {one['versions']['torch']}; commit {which}; files "
        f"`benchmarks/results/{one['folder']}/{TOPIC}*.json`.",
        "",
        "| " + " | ".join(heads) + " |",
        "| --- | --- |" + " ---: |" * (len(heads) - 2),
        *map(_line, sorted(found, key=_order)),
        "",
        "A first call is all there was time for where it says so. It holds what `Restorer` does "
        "once for all pictures, such as packing weights, and so says less than there is.",
        "",
        *(
            line
            for content in contents
            if not content["complete"]
            for line in (f"Cases are missing: `{content['topic']}.json` is of a run cut short.", "")
        ),
    ]


def _figures(folder: str, topic: str, results: Path) -> dict[str, Any] | None:
    path = results / folder / f"{topic}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _baseline(contents: list[dict[str, Any]]) -> list[str]:
    """How long the field's baseline takes, as people run it, beside ours."""
    lines = []
    for content in contents:
        compared = [row for row in rows(content) if BASELINE in row.case["contestants"]]
        if not compared:
            continue
        lines += [
            "TransWeather's structure as people run it (plain PyTorch, float32, glibc's allocator) "
            "takes so many times as long as ours with its prior encoder (commit "
            f"`{content['commit'][:10]}`, "
            f"`benchmarks/results/{content['folder']}/{content['topic']}.json`):",
            "",
            "| | precision of ours | ours, ms | TransWeather in float32 |",
            "| --- | --- | ---: | ---: |",
        ]
        for row in sorted(compared, key=_order):
            name, own = row.case["size"]["name"], 1e3 * row.own_seconds
            times = _times(row.best(BASELINE))
            lines.append(f"| {name} | {row.case['dtype']} | {own:.0f} | {times} |")
        lines.append("")
    return lines


def _start_up(folder: str, results: Path) -> list[str]:
    content = _figures(folder, "start_up", results)
    if content is None:
        return []
    found = content["figures"]
    restore, torch = found["clipweather restore"], found["import torch"]
    ours = found["import clipweather_fast beyond torch"]
    return [
        f"`clipweather restore` of one 720 × 480 picture, from the start of the process to the "
        f"written file: {restore['wall_s']:.1f} s, of which PyTorch's import takes "
        f"{torch['wall_s']:.1f} s and this package's {ours['wall_s']:.2f} s more (commit "
        f"`{content['commit'][:10]}`, `benchmarks/results/{folder}/start_up.json`).",
        "",
    ]


def _memory(folder: str, results: Path) -> list[str]:
    content = _figures(folder, "picture_memory", results)
    if content is None:
        return []
    lines = [
        f"The most memory that one picture takes beyond the loaded network (commit "
        f"`{content['commit'][:10]}`, `benchmarks/results/{folder}/picture_memory.json`):",
        "",
        "| | here | PyTorch, scores formed | PyTorch's attention |",
        "| --- | ---: | ---: | ---: |",
    ]
    for name, found in content["figures"].items():
        cells = [name]
        for side in ("ours", "eager", "eager sdpa"):
            size = found.get(side, {}).get("beyond_loaded_bytes")
            cells.append("–" if size is None else f"{size / 2**30:.2f} GiB")
        lines.append("| " + " | ".join(cells) + " |")
    return [*lines, ""]


def block(contents: list[dict[str, Any]], results: Path = RESULTS) -> str:
    """The generated part of docs/performance.md.

    Args:
        contents: the contests' result files, as ``load_all`` gives them.
        results: where the scripts' result files are.
    """
    folders = sorted({content["folder"] for content in contents})
    parts = []
    for folder in folders:
        mine = [it for it in contents if it["folder"] == folder and it["topic"].startswith(TOPIC)]
        plain = [it for it in mine if it["topic"].endswith(AS_PEOPLE_RUN_IT)]
        tuned = [it for it in mine if it not in plain]
        found = _speeds(tuned) if tuned else []
        found += _baseline(plain)
        found += _start_up(folder, results) + _memory(folder, results)
        if found:
            parts += [f"### {folder}", "", *found]
    return "\n".join(parts).rstrip() + "\n" if parts else NOTHING
