"""The tables of the README, docs/benchmarks.md and docs/performance.md, from the results.

``python -m benchmarks.report`` prints and writes them; ``--check`` exits with 1 if what is
committed is not what the results say.
"""

from __future__ import annotations

import argparse
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks import picture_tables
from benchmarks.chart import chart
from benchmarks.results import RESULTS, load_all, write_atomically
from benchmarks.rows import OURS, Row, rows

__all__ = ["main", "summary", "tables"]

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
DETAILS = ROOT / "docs" / "benchmarks.md"
PERFORMANCE = ROOT / "docs" / "performance.md"
CHART = ROOT / "docs" / "benchmarks.svg"
BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"

_INTRODUCTION = """\
# Benchmarks

Written by `python -m benchmarks.report` from `benchmarks/results/`. Before a case is timed its
values and gradients are checked against fp64. Times are medians of rounds in which every contestant
runs once, on inputs that rotate through twice the last-level cache; on a GPU a time inside a CUDA
graph replaces the median where both sides have one. The columns of opponents say how many times
longer they take than ours; below 1 is a loss, and losses come first. `peak` and `saved`: how many
times our memory plain PyTorch needs in its better format, at the peak and kept for the backward
pass. `roof`: the time that the named ceiling (`copy`, `fma`, `issue`, `matrix`), measured in the
same run, allows for the least bytes or arithmetic, as a share of ours; activations not counted.

Whole pictures (`pictures_…`) have a limit of time each: where fewer than five rounds fitted it says
how many, and what took part in none is named with the reason. Ours is checked against fp64 on a
small picture, and every side at the size that is timed against plain PyTorch in float32. Sizes are
of the picture in memory; [performance](performance.md) sums up.
"""

#: What the README shows of each machine, where it was measured: topic, the case's name.
HEADLINE = (
    ("sar_conv2d", "256x256 stage 1, float32, forward"),
    ("sar_conv2d", "256x256 stage 1, float32, both"),
    ("sar_conv2d", "256x256 stage 1, bfloat16, forward"),
    ("sar_conv2d", "1080p stage 1, float32, forward"),
    ("sar_conv2d", "1080p stage 1, bfloat16, forward"),
    ("sar_mixer", "256x256 stage 1, float32, forward"),
    ("sar_mixer", "1080p stage 1, float32, forward"),
    ("reduced_kv_attention", "256x256 stage 1, float32, forward"),
    ("reduced_kv_attention", "256x256 stage 1, bfloat16, forward"),
    ("reduced_kv_attention", "256x256 batch 32 stage 1, bfloat16, forward"),
    ("accelerate", "pvt_v2_b1 256x256, float32, forward"),
    ("clip_weather", "clipweather_base 256x256, float32, forward"),
    ("clip_weather", "clipweather_base 480x720, float32, forward"),
    ("pictures_clipweather_base", "clipweather_base 256x256, float32, forward"),
    ("pictures_clipweather_base", "clipweather_base 480x720, float32, forward"),
    ("pictures_clipweather_base", "clipweather_base 480x720, bfloat16, forward"),
    ("pictures_clipweather_base", "clipweather_base 1080p, bfloat16, forward"),
)


def _times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return f"{ratio:.2f}×" if ratio < 1.95 else f"{ratio:.1f}×"


def _milliseconds(seconds: float) -> str:
    digits = 3 if seconds < 1e-3 else 2 if seconds < 0.1 else 1
    return f"{seconds * 1e3:.{digits}f}"


def _roof(row: Row) -> str:
    found = row.roof
    return "–" if found is None else f"{found[1]:.0%} {found[0]}"


def _machine(content: dict[str, Any]) -> str:
    facts = content["machine"]
    if content["device"] == "cuda":
        return str(facts["gpu"])
    threads = "one thread" if content["threads"] == 1 else f"{content['threads']} threads"
    isa = f", {facts['cpu_isa']}" if facts["cpu_isa"] else ""
    return f"{facts['cpu']}{isa}, {threads}"


def _headline_rows(contents: list[dict[str, Any]]) -> list[Row]:
    known = {(row.topic, row.name): row for content in contents for row in rows(content)}
    return [known[key] for key in HEADLINE if key in known]


def _by_machine(contents: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(name, list(files)) for name, files in groupby(contents, lambda it: it["folder"])]


def _eager(row: Row) -> float | None:
    """Against plain PyTorch in its better memory format."""
    return row.best("eager")


def summary(contents: list[dict[str, Any]]) -> str:
    """The README's part: one short table per machine."""
    parts = []
    for _, files in _by_machine(contents):
        shown = _headline_rows(files)
        if not shown:
            continue
        one = files[0]
        parts += [
            f"{_machine(one)}; PyTorch {one['versions']['torch'].split('+')[0]}. How many times "
            "faster than plain PyTorch and than `torch.compile`, each in its better memory format:",
            "",
            "| | ms | eager | compile | saved for backward | roof reached |",
            "| --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in shown:
            saved = _times(row.memory_ratio("eager", "saved_bytes"))
            cells = (
                f"`{row.topic}` {row.label}",
                _milliseconds(row.own_seconds),
                _times(_eager(row)),
                _times(row.best("compile")),
                saved if saved == "–" else f"{saved} less",
                _roof(row),
            )
            parts.append("| " + " | ".join(cells) + " |")
        parts.append("")
    if not parts:
        return "No measurements are committed yet.\n"
    parts += ["![speed-ups](docs/benchmarks.svg)", ""]
    parts.append(
        "Medians, both sides in turn in one process (ONNX Runtime and OpenVINO in their own), "
        "fp32 sums on both, the same tuned allocator. "
        "The roof counts every product; Winograd's convolutions need fewer, so whole networks can "
        "pass it. [All results](docs/benchmarks.md), losses first."
    )
    return "\n".join(parts) + "\n"


def _details_of(content: dict[str, Any]) -> list[str]:
    """One topic's table."""
    found = rows(content)
    opponents = list(dict.fromkeys(name for row in found for name in row.opponents))
    header = ["case", "ms (p20–p80)", "GB/s", "roof", *opponents, "peak", "saved"]
    lines = [
        f"### {content['topic']}",
        "",
        f"{'' if content['complete'] else 'The run was cut short. '}"
        f"Commit `{content['commit'][:10]}`{' with changes' if content['modified'] else ''}; "
        f"allocator: {content['allocator']}; clock: {content['clock']}; copy "
        f"{content['roofs']['copy_bytes_per_s'] / 1e9:.1f} GB/s, fp32 matrix product "
        f"{content['roofs']['matmul_float32_flops'] / 1e9:.0f} GFLOP/s.",
        "",
        "| " + " | ".join(header) + " |",
        "| --- |" + " ---: |" * (len(header) - 1),
    ]
    for row in found:
        ours = row.case["contestants"][OURS]
        spread = f"{_milliseconds(ours['p20_s'])}–{_milliseconds(ours['p80_s'])}"
        if ours["rounds"] < 5:
            spread += f"; {ours['rounds']} round{'s' * (ours['rounds'] > 1)}"
        cells = [
            row.label,
            f"{_milliseconds(row.own_seconds)} ({spread})",
            f"{row.bandwidth / 1e9:.1f}",
            _roof(row),
            *(_times(row.ratio(name) if name in row.opponents else None) for name in opponents),
            _times(row.memory_ratio("eager", "peak_bytes")),
            _times(row.memory_ratio("eager", "saved_bytes")),
        ]
        lines.append("| " + " | ".join(cells) + " |")
        refused = row.case["refused"]
        lines += [f"| ↳ without {name}: {why} |" for name, why in refused.items()]
    return [*lines, ""]


def tables(contents: list[dict[str, Any]]) -> str:
    """docs/benchmarks.md: every result, losses first."""
    lines = [_INTRODUCTION]
    for name, files in _by_machine(contents):
        versions = files[0]["versions"]
        known = ", ".join(f"{key} {value}" for key, value in versions.items() if value)
        lines += [f"## {name}", "", f"{_machine(files[0])}. {known}.", ""]
        for content in files:
            lines += _details_of(content)
    return "\n".join(lines).rstrip() + "\n"


def _replaced(path: Path, block: str) -> str:
    """The file's text with another block between the two marks."""
    text = path.read_text(encoding="utf-8")
    if BEGIN not in text or END not in text:
        raise SystemExit(f"{path.name} must hold the lines {BEGIN} and {END}")
    before, rest = text.split(BEGIN, 1)
    return f"{before}{BEGIN}\n{block}{END}{rest.split(END, 1)[1]}"


def expected(contents: list[dict[str, Any]]) -> dict[Path, str]:
    """What each generated file must hold."""
    bars = [(_machine(files[0]), _headline_rows(files)) for _, files in _by_machine(contents)]
    bars = [(machine, shown) for machine, shown in bars if shown]
    found = {README: _replaced(README, summary(contents))}
    found[PERFORMANCE] = _replaced(PERFORMANCE, picture_tables.block(contents))
    found[DETAILS] = tables(contents)
    if bars:
        found[CHART] = chart(bars)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if not current")
    parser.add_argument("--results", type=Path, default=RESULTS, help="print these; write nothing")
    options = parser.parse_args(arguments)
    contents = load_all(options.results)
    if options.results != RESULTS:
        print(tables(contents))
        return 0
    wanted = expected(contents)
    stale = [
        path
        for path, text in wanted.items()
        if not path.exists() or path.read_text(encoding="utf-8") != text
    ]
    if options.check:
        for path in stale:
            print(f"{path.relative_to(ROOT)} is not current: run python -m benchmarks.report")
        return 1 if stale else 0
    print(tables(contents))
    for path in stale:
        write_atomically(path, wanted[path])
        print(f"wrote {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
