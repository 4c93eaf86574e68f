"""The most memory that restoring one picture takes, each side in a process of its own.

    python -m benchmarks.models.picture_memory [--size WIDTHxHEIGHT] [--model NAME ...] [--4k]

The process loads the network, restores a small picture, and resets the system's record of its
largest resident size; then it restores the large one. What is reported is that size, and what of it
came on top of the loaded process. The allocator is the C library's as it comes. Every side's
picture is compared with ours, and ours in both precisions with each other, before figures count.
``--4k`` adds 3840 × 2160, which is to fit into 24 GiB by itself.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from benchmarks.correctness import WrongResult
from benchmarks.figures import write_figures
from benchmarks.models import picture_contest as contest
from benchmarks.models import picture_sides
from benchmarks.results import ROOT
from clipweather_fast import Restorer

__all__ = ["main"]

MODELS = ("clipweather_base", "clipweather_tiny")
SIDES = ("ours", "eager", "eager sdpa")
#: At 3840 × 2160 the scores of one layer alone take 17 GB, and what forms none takes minutes.
SIDES_OF_4K = {"clipweather_base": ("ours",), "clipweather_tiny": ("ours", "eager sdpa")}
COUNTED = (
    "resident size of a process of its own that restores one float32 picture in memory, after a "
    "64 x 64 one: peak_bytes is its largest while it does, with Python, PyTorch, the weights (the "
    "prior encoder's and, of ours, the packed ones too), the picture and the result; "
    "beyond_loaded_bytes is what of it came after the weights and the picture were there and "
    "malloc_trim had given back what loading had freed; tile: "
    "side of the tiles that Restorer chose, null: whole"
)
DTYPES = ("float32", "bfloat16")
#: Seconds for one process.
LIMIT = 280


def resident(field: str) -> int:
    """Bytes of this process by a line of /proc: VmRSS is now, VmHWM the most since the reset."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def measured_here(arguments: list[str]) -> None:
    """The work of a child: one side, one picture; prints its figures as JSON."""
    side, model, dtype, width, height, result = arguments
    torch.set_num_threads(1)
    size = contest.PictureSize("", model, 1, int(height), int(width))
    small = contest.PictureSize("", model, 1, 64, 64)
    restorer: Restorer | None = None
    if side == "ours":
        network = picture_sides.network(model, False)
        call = restorer = picture_sides.restorer_of(network, getattr(torch, dtype), "cpu")
        del network
    else:
        call = picture_sides.build(side, size, getattr(torch, dtype), "cpu")
    picture_sides.network.cache_clear()  # sides have copies
    call(contest.pictures(small))
    images = contest.pictures(size)
    # What loading has freed would else be there for the picture, and count for nobody.
    ctypes.CDLL(None).malloc_trim(0)
    loaded = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    restored = call(images)
    peak = resident("VmHWM")
    torch.save(restored[:, :, ::4, ::4].clone(), result)
    figures = {"peak_bytes": peak, "beyond_loaded_bytes": peak - loaded}
    if restorer is not None:
        figures["tile"] = restorer.report.tile
    print(json.dumps(figures))


def measured(side: str, model: str, dtype: str, width: int, height: int, result: Path) -> Any:
    """Figures of one process, or the reason why there are none."""
    command = [sys.executable, "-P", "-m", "benchmarks.models.picture_memory", "--child", side]
    command += [model, dtype, str(width), str(height), str(result)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT, check=False
        )
    except subprocess.TimeoutExpired:
        return {"refused": f"took more than {LIMIT} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"ended with {done.returncode}"])[-1]
        return {"refused": last[:200]}
    return json.loads(done.stdout.splitlines()[-1])


def compared(ours: Path, others: dict[str, Path], dtype: str) -> None:
    """Raises WrongResult where a picture is not ours."""
    expected = torch.load(ours, weights_only=True)
    allowed = contest.TOLERANCE if dtype == "float32" else 10 ** (-contest.LEAST_DECIBELS / 20)
    for name, path in others.items():
        apart = torch.load(path, weights_only=True) - expected
        error = apart.abs().max() if dtype == "float32" else apart.square().mean().sqrt()
        if not float(error) <= allowed:
            raise WrongResult(f"{name}: {float(error):.3g} from ours, allowed is {allowed:.3g}")


def rows(model: str, width: int, height: int, sides: tuple[str, ...]) -> dict[str, Any]:
    """One network and size: for each precision figures by side."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = {}
        for dtype in DTYPES:
            name = f"{model} {width}x{height} {dtype}"
            files = {side: Path(folder) / f"{dtype} {side}.pt" for side in sides}
            each = {s: measured(s, model, dtype, width, height, files[s]) for s in sides}
            found[name] = each
            for side, figures in each.items():
                words = figures.get("refused") or (
                    f"{figures['peak_bytes'] / 2**30:.2f} GiB, of them "
                    f"{figures['beyond_loaded_bytes'] / 2**30:.2f} beyond the loaded network"
                )
                print(f"{name}, {side}: {words}", flush=True)
            if "refused" not in each["ours"]:
                ours[dtype] = files["ours"]
                others = {side: files[side] for side in sides if "refused" not in each[side]}
                compared(ours[dtype], others, dtype)
        if len(ours) == len(DTYPES):
            compared(ours["float32"], ours, "bfloat16")
    return found


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        measured_here(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--size", default="1920x1080", metavar="WIDTHxHEIGHT")
    parser.add_argument("--model", action="append", help=f"by default {', '.join(MODELS)}")
    parser.add_argument("--4k", dest="uhd", action="store_true", help="also 3840 x 2160")
    options = parser.parse_args()
    width, height = map(int, options.size.split("x"))
    models = options.model or MODELS
    found = {}
    for model in models:
        found |= rows(model, width, height, SIDES)
    if options.uhd:
        for model in models:
            found |= rows(model, 3840, 2160, SIDES_OF_4K.get(model, SIDES[:1]))
    path = write_figures("picture_memory", found, threads=1, allocator="default", counted=COUNTED)
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
