"""From the start of the process to the restored picture: what a user of one picture waits for.

    python -m benchmarks.start_up [--rounds N] [--threads N]

Every figure is of fresh interpreters, in turn: the import of PyTorch, of this package, and
``clipweather restore`` of one 720 × 480 PNG with the network that comes with the package. The
written file is compared with what a :class:`Restorer` gives in this process before a time counts.
Processor time is given beside the wall clock's: a busy machine shows in their difference.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.correctness import WrongResult
from benchmarks.figures import write_figures
from benchmarks.results import ROOT
from clipweather_fast import Restorer

__all__ = ["main"]

WIDTH, HEIGHT = 720, 480
PHOTOGRAPH = ROOT / "examples" / "coffee.jpg"
#: Levels of 256 by which two runs with different numbers of threads may round apart.
LEVELS = 2


@dataclass(frozen=True)
class Spent:
    """Seconds of one process: by the wall clock and of processors."""

    wall: float
    processor: float


def timed(command: list[str]) -> Spent:
    """Runs a command to its end. Raises CalledProcessError if it fails."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-P", *command], check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall, used)


def check(written: Path, source: Path) -> None:
    """Raises WrongResult unless the file holds the picture restored in this process."""
    expected = Restorer(device="cpu")(source).pixels
    found = np.asarray(Image.open(written).convert("RGB"))
    if found.shape != expected.shape:
        raise WrongResult(f"start_up: the file has {found.shape}, not {expected.shape}")
    apart = int(np.abs(found.astype(int) - expected.astype(int)).max())
    if apart > LEVELS:
        raise WrongResult(f"start_up: the file is {apart} levels off")
    if np.array_equal(found, np.asarray(Image.open(source).convert("RGB"))):
        raise WrongResult("start_up: the picture came out as it went in")


def measured(rounds: int) -> dict[str, dict[str, float]]:
    """Medians and extremes by what was started."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.png", Path(folder) / "out.png"
        with Image.open(PHOTOGRAPH) as photograph:
            photograph.convert("RGB").resize((WIDTH, HEIGHT)).save(source)
        restore = ["-m", "clipweather_fast", "restore", str(source), "-o", str(target)]
        commands = {
            "import torch": ["-c", "import torch"],
            "import clipweather_fast": ["-c", "import clipweather_fast"],
            "clipweather restore": [*restore, "--device", "cpu"],
        }
        found: dict[str, list[Spent]] = {name: [] for name in commands}
        for command in commands.values():  # files into memory, byte code onto disk
            timed(command)
        check(target, source)
        for _ in range(rounds):
            target.unlink()
            for name, command in commands.items():
                found[name].append(timed(command))
            check(target, source)
    return {name: summary(spent) for name, spent in found.items()}


def summary(spent: list[Spent]) -> dict[str, float]:
    """Of the processes of one command."""
    walls = [one.wall for one in spent]
    return {
        "wall_s": statistics.median(walls),
        "least_wall_s": min(walls),
        "most_wall_s": max(walls),
        "processor_s": statistics.median(one.processor for one in spent),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of the processes")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    found = measured(options.rounds)
    ours, torch = found["import clipweather_fast"], found["import torch"]
    found["import clipweather_fast beyond torch"] = {
        key: ours[key] - torch[key] for key in ("wall_s", "processor_s")
    }
    for name, figures in found.items():
        print(f"{name:<36} {figures['wall_s']:.2f} s, processor {figures['processor_s']:.2f} s")
    facts = {"rounds": options.rounds, "threads": options.threads, "picture": [HEIGHT, WIDTH]}
    print(f"written: {write_figures('start_up', found, **facts).relative_to(ROOT)}")


if __name__ == "__main__":
    main()
