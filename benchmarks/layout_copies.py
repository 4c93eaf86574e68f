"""How much of the encoder's time goes into copies, and for what.

Tokens (N, H·W, C) and channels-last images are the same memory, so nothing between the modules of a
network needs to be copied. What copies are left is counted by kind:

- ``layout``: a tensor rewritten in another order, or made dense;
- ``windows``: the windows of the attention's reduced keys, laid out in rows for one matrix product
  (on the CPU four times faster than the strided convolution it replaces);
- ``bias``: a layer's bias, written into its result before the product is added.

    python -m benchmarks.layout_copies [--model NAME] [--size HEIGHT WIDTH] [--threads N]

The medians of several profiles are printed and written to ``layout_copies.json`` beside the
machine's results, after both backends gave the same.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.correctness import WrongResult
from benchmarks.figures import write_figures
from benchmarks.results import ROOT
from clipweather_fast import create_model, list_models, use_backend

__all__ = ["Copies", "copies_in", "encoder_call", "main"]

KINDS = ("layout", "windows", "bias")
#: Of a stage's largest value: sums in another order, over eleven blocks.
TOLERANCE = 1e-3


@dataclass
class Copies:
    """Times in microseconds and numbers of copies by kind."""

    total_us: float
    time_us: Counter[str] = field(default_factory=Counter)
    count: Counter[str] = field(default_factory=Counter)

    def share(self, kind: str) -> float:
        """The part of all time that copies of a kind take."""
        return float(self.time_us[kind]) / self.total_us


def copies_in(call: Callable[[], Any]) -> Copies:
    """Profiles one call on the CPU and sorts its copies by kind."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        call()
    events = profiler.events() or []
    found = Copies(sum(event.self_cpu_time_total for event in events))
    for event in events:
        if event.name == "aten::copy_" and len(event.input_shapes[0]) > 1:
            kind = _kind(event)
            found.time_us[kind] += event.self_cpu_time_total
            found.count[kind] += 1
    return found


def _kind(event: Any) -> str:
    parents, parent = [], event.cpu_parent
    while parent is not None:
        parents.append(parent.name)
        parent = parent.cpu_parent
    target, source = event.input_shapes[:2]
    if parents[:1] == ["aten::addmm"] or source != target:
        return "bias"
    if "aten::reshape" in parents and len(target) == 6:
        return "windows"
    return "layout"


def encoder_call(name: str, height: int, width: int) -> Callable[[], Any]:
    """A network's encoder on a prepared picture whose sides need no padding."""
    torch.manual_seed(0)
    overrides = {} if name == "transweather" else {"prior_encoder": "none"}
    encoder = create_model(name, **overrides).eval().image_encoder
    picture = torch.rand(1, 3, height, width).contiguous(memory_format=torch.channels_last)

    def call() -> Any:
        with torch.no_grad():
            return encoder(picture)

    return call


def shares(call: Callable[[], Any], profiles: int) -> dict[str, Any]:
    """Medians over several profiles: milliseconds, and the share and number of each kind."""
    found = [copies_in(call) for _ in range(profiles)]
    kinds = {
        kind: {
            "share": statistics.median(copies.share(kind) for copies in found),
            "least_share": min(copies.share(kind) for copies in found),
            "most_share": max(copies.share(kind) for copies in found),
            "count": found[0].count[kind],
        }
        for kind in KINDS
    }
    return {"encoder_ms": statistics.median(it.total_us for it in found) / 1e3, "copies": kinds}


def check(call: Callable[[], Any]) -> None:
    """Raises WrongResult unless both backends give the same stages."""
    results = []
    for backend in ("reference", "auto"):
        with use_backend(backend):
            results.append(call())
    for ours, reference in zip(results[1], results[0], strict=True):
        apart = float((ours - reference).abs().max() / reference.abs().max())
        if not apart <= TOLERANCE:
            raise WrongResult(f"layout_copies: a stage differs by {apart:.2g} of its largest value")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=list_models(), default="clipweather_base")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 768), metavar="PIXELS")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--profiles", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    call = encoder_call(arguments.model, *arguments.size)
    check(call)
    print(f"encoder of {arguments.model}, {arguments.size[0]} x {arguments.size[1]}")
    figures = {}
    for backend in ("reference", "auto"):
        with use_backend(backend):
            figures[backend] = found = shares(call, arguments.profiles)
        kinds = found["copies"].items()
        words = [f"{kind} {it['share']:.1%} ({it['count']})" for kind, it in kinds]
        print(f"  {backend:9}: {found['encoder_ms']:7.1f} ms; copies: {', '.join(words)}")
    facts = {"model": arguments.model, "size": arguments.size, "threads": arguments.threads}
    path = write_figures("layout_copies", figures, profiles=arguments.profiles, **facts)
    print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
