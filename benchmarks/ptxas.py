"""Compiles every CUDA source and tables what each kernel takes: ``python -m benchmarks.ptxas``.

Needs nvcc, no GPU. Exits with 1 if any kernel spills registers or a source does not compile with
warnings as errors.
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).resolve().parents[1] / "csrc"
FLAGS = ("-std=c++17", "--expt-relaxed-constexpr", "-Werror", "all-warnings", "-Xptxas", "-v")


@dataclass(frozen=True)
class Kernel:
    """One compiled entry point: per-thread registers, bytes of shared memory, stack and spills."""

    name: str
    registers: int
    shared: int
    stack: int
    spills: int


def demangled(names: list[str]) -> list[str]:
    """C++ names in words, where a demangler is at hand."""
    tool = shutil.which("cu++filt") or shutil.which("c++filt")
    if tool is None or not names:
        return names
    lines = subprocess.run([tool, *names], capture_output=True, text=True, check=True).stdout
    short = re.compile(
        r"\(anonymous namespace\)::|clipweather::|<unnamed>::|^void |\(int\)|\(bool\)"
    )
    return [re.sub(r"\(.*", "", short.sub("", line)) for line in lines.splitlines()]


def kernels(report: str) -> Iterator[Kernel]:
    """The kernels of one ``ptxas -v`` report, mangled names."""
    for entry in report.split("Compiling entry function '")[1:]:
        numbers = {
            key: int(match.group(1)) if (match := re.search(pattern, entry)) else 0
            for key, pattern in {
                "registers": r"Used (\d+) registers",
                "shared": r"(\d+) bytes smem",
                "stack": r"(\d+) bytes stack frame",
                "stores": r"(\d+) bytes spill stores",
                "loads": r"(\d+) bytes spill loads",
            }.items()
        }
        spills = numbers.pop("stores") + numbers.pop("loads")
        yield Kernel(entry.split("'")[0], spills=spills, **numbers)


def compiled(source: Path, architecture: str) -> subprocess.CompletedProcess[str]:
    """One source through nvcc, the object thrown away."""
    command = ["nvcc", *FLAGS, "-I", str(CSRC), f"-arch=sm_{architecture}", "-c", "-o", "/dev/null"]
    return subprocess.run([*command, str(source)], capture_output=True, text=True, check=False)


def main() -> int:
    """Prints the table; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="90", help="compute capability, e.g. 80, 90 or 120")
    parser.add_argument("--only", default="", help="sources whose path contains this")
    arguments = parser.parse_args()
    if shutil.which("nvcc") is None:
        print("ptxas: nvcc was not found; put it on PATH")
        return 1
    sources = [p for p in sorted(CSRC.rglob("*_cuda.cu")) if arguments.only in str(p)]
    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(lambda source: compiled(source, arguments.arch), sources))
    failed = False
    title = f"kernel (sm_{arguments.arch})"
    print(f"{title:<72}{'regs':>6}{'shared':>8}{'stack':>7}{'spill':>7}")
    for source, result in zip(sources, results, strict=True):
        if result.returncode != 0:
            print(f"{source.name} does not compile:\n{result.stderr}")
            failed = True
            continue
        rows = list(kernels(result.stderr))
        for name, row in zip(demangled([row.name for row in rows]), rows, strict=True):
            print(f"{name:<72}{row.registers:>6}{row.shared:>8}{row.stack:>7}{row.spills:>7}")
            failed = failed or row.spills > 0
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
