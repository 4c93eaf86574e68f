"""What a result says of where it was measured: machine, versions, commit."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

import clipweather_fast
from clipweather_fast import installation

__all__ = ["commit", "facts", "name", "versions"]

ROOT = Path(__file__).resolve().parents[1]


def _cpu_isa() -> str:
    """The instruction set the native kernels chose; empty where they are not built."""
    from clipweather_fast.ops import _native

    if _native.why_not_loaded() is not None:
        return ""
    return _native.CPU_ISAS[_native.core().cpu_isa]


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def query_gpu(field: str) -> str:
    """One field of nvidia-smi for the first GPU; empty where it does not answer."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits", "-i", "0"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def facts(device: str) -> dict[str, Any]:
    """Processor, cores and, on a GPU, its name and sizes."""
    found: dict[str, Any] = {
        "cpu": installation.processor(),
        "cpu_isa": _cpu_isa(),
        "cores": cores(),
        "system": platform.system(),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "gpu": properties.name,
            "gpu_memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "l2_bytes": getattr(properties, "L2_cache_size", 0),
            "driver": query_gpu("driver_version"),
            "max_clock_mhz": float(query_gpu("clocks.max.sm") or 0),
        }
    return found


def name(device: str) -> str:
    """The folder of this machine's results, e.g. ``amd-epyc-avx512-bf16-2-cores``, ``nvidia-h100``.

    The instruction set belongs to it: virtual machines with one processor's name differ in theirs.
    """
    known = facts(device)
    isa = known["cpu_isa"]
    text = known["gpu"] if device == "cuda" else f"{known['cpu']} {isa} {known['cores']} cores"
    text = re.sub(r"\((r|tm)\)", "", text.lower())
    return re.sub(r"[^a-z0-9]+", "-", text).strip("-")


def versions() -> dict[str, str]:
    """Versions of everything whose change can move a time."""
    found = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "clipweather_fast": clipweather_fast.__version__,
        "libc": " ".join(platform.libc_ver()),
    }
    for package in ("triton", "numpy", "pytest-benchmark"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = ""
    return found


def _git(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["git", "-C", str(ROOT), *arguments],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout.strip()


def commit() -> dict[str, Any]:
    """The commit measured, and whether files that matter were changed on top of it."""
    changed = _git("status", "--porcelain", "--", "clipweather_fast", "csrc", "benchmarks/*.py")
    return {"commit": _git("rev-parse", "HEAD") or "unknown", "modified": bool(changed)}
