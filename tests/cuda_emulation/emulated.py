"""A pytest plugin: the backend "cuda" runs the CUDA sources on CPU tensors, on fibers.

``PYTHONPATH=tests/cuda_emulation pytest -p emulated --backend cuda tests/ops`` compiles the kernels
with the headers of this folder as C++ and puts the result in the place of the native core. Every
argument check, workspace, launch and index is the real one; only the hardware is not.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import pybind11
import pytest
import torch

from clipweather_fast.ops import _native

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_emulation"
#: The operators whose CUDA sources are emulated.
OPERATORS = ("sar_conv2d", "sar_logits", "reduced_kv_attention")
FLAGS = (
    *("-std=c++17", "-O1", "-g1", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-w"),
    *("-DCLIPWEATHER_WITH_CUDA=1", '-DCLIPWEATHER_CUDA_ARCHS="emulated"'),
    *('-DCLIPWEATHER_CUDA_REASON=""', '-DCLIPWEATHER_CPU_ISAS="baseline"'),
)


def sources() -> list[Path]:
    """What the emulated core is made of."""
    found = [CSRC / "module.cpp", *sorted((CSRC / "common").glob("*.cpp"))]
    for operator in OPERATORS:
        for pattern in ("*_cuda.cu", "*_cuda_bind.cpp"):
            found += sorted((CSRC / operator).glob(pattern))
    return found


def _compile(source: Path, newest_header: float) -> Path:
    target = BUILD / f"{source.name}.o"
    if target.exists() and target.stat().st_mtime > max(newest_header, source.stat().st_mtime):
        return target
    includes = [HERE, CSRC, pybind11.get_include(), sysconfig.get_path("include")]
    paths = [f"-I{path}" for path in includes]
    command = [os.environ.get("CXX", "g++"), *FLAGS, *paths, "-x", "c++", "-c", str(source)]
    subprocess.run([*command, "-o", str(target)], check=True)
    return target


def build() -> Path:
    """The emulated core, recompiled where a source is newer."""
    BUILD.mkdir(parents=True, exist_ok=True)
    headers = [p for folder in (HERE, CSRC) for p in folder.rglob("*") if p.suffix == ".h"]
    newest = max(path.stat().st_mtime for path in headers)
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(lambda source: _compile(source, newest), sources()))
    library = BUILD / "_C.so"
    compiler = os.environ.get("CXX", "g++")
    subprocess.run([compiler, "-shared", "-o", str(library), *map(str, objects)], check=True)
    return library


def load() -> ModuleType:
    """The emulated core as a module."""
    spec = importlib.util.spec_from_file_location("_C", build())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _why_not_cuda(x: torch.Tensor) -> str | None:
    if x.dtype in _native.GPU_DTYPES:
        return None
    return f"the CUDA kernels take float32, bfloat16 or float16, got {x.dtype}"


def pytest_configure(config: pytest.Config) -> None:
    core = load()
    _native._load = lambda: (core, "")
    _native.why_not_cuda = _why_not_cuda
    _native.stream = lambda device: 0
