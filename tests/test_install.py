"""The installed package: its native core, what that links to, and how the build refuses."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import clipweather_fast
from clipweather_fast.ops import _native

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A command in the checkout, with these environment variables."""
    environment = {**os.environ, **variables}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


# ---- what was installed --------------------------------------------------------------------------


def test_the_native_core_is_there() -> None:
    assert _native.why_not_loaded() is None


def test_metadata() -> None:
    try:
        found = importlib.metadata.metadata("clipweather_fast")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("the package is used from its source tree, not installed")
    assert found["Version"] == clipweather_fast.__version__
    assert found["License-Expression"] == "Apache-2.0"
    assert (Path(clipweather_fast.__file__).parent / "py.typed").exists()
    scripts = importlib.metadata.entry_points(group="console_scripts", name="clipweather")
    assert [script.value for script in scripts] == ["clipweather_fast.cli:main"]


def test_the_native_core_links_neither_torch_nor_python() -> None:
    linked = run("ldd", str(_native.core().__file__)).stdout
    assert "libc.so" in linked
    assert not re.search(r"torch|c10|libpython|libcudart", linked)


def test_one_openmp_runtime_serves_torch_and_the_kernels() -> None:
    program = (
        "import clipweather_fast, torch\n"
        "from clipweather_fast import ops\n"
        "torch.set_num_threads(2)\n"
        "x = torch.rand(2, 64, 64, 64)\n"
        "ops.depthwise_conv2d(x, torch.rand(64, 1, 3, 3), backend='cpu')\n"
        "(x @ x).sum()\n"
        "print(*{line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line})\n"
    )
    done = run(sys.executable, "-P", "-c", program)
    assert done.returncode == 0, done.stderr
    runtimes = [path for path in done.stdout.split() if re.search(r"lib(g|i)?omp", path)]
    assert len(runtimes) == 1, runtimes


def test_kernels_of_an_instruction_set_share_no_function_with_the_others() -> None:
    """Of a function that several objects define (an inline std:: one) the linker keeps one copy,
    and the AVX-512 one would crash an older processor. An object may define only what is in its
    own namespace.
    """
    build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
    objects = sorted(build.glob("CMakeFiles/cpu_*.dir/**/*.o"))
    if not objects:
        pytest.skip("the package was not built in this checkout, so its objects are not here")
    shared = []
    for path in objects:
        isa = re.search(r"/cpu_(\w+)\.dir/", str(path))
        assert isa is not None
        symbols = run("nm", "-C", "--defined-only", str(path)).stdout
        functions = re.findall(r"^\w+ [WT] (.*)$", symbols, re.MULTILINE)
        assert functions, f"{path} defines no function"
        own = f"clipweather::{isa[1]}::"
        shared += [f"{path.name} ({isa[1]}): {name}" for name in functions if own not in name]
    assert shared == []


# ---- how the build refuses -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CLIPWEATHER_CUDA", "maybe", "CLIPWEATHER_CUDA must be auto, on or off, got 'maybe'"),
        ("CLIPWEATHER_CUDA_ARCHS", "sm_90", "separated by commas, e.g. 80,90, got 'sm_90'"),
    ],
)
def test_a_wrong_build_variable_stops_with_its_name(name: str, value: str, words: str) -> None:
    done = run(sys.executable, "setup.py", "build_ext", **{name: value})
    assert done.returncode != 0
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def configure(folder: Path, *options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """CMake's configure step alone."""
    pybind11 = run(sys.executable, "-m", "pybind11", "--cmakedir").stdout.strip()
    cmake = Path(sys.executable).with_name("cmake")
    return run(
        str(cmake),
        *("-S", str(ROOT), "-B", str(folder), "-G", "Ninja", f"-Dpybind11_DIR={pybind11}"),
        f"-DCMAKE_MAKE_PROGRAM={Path(sys.executable).with_name('ninja')}",
        f"-DPython_EXECUTABLE={sys.executable}",
        *options,
        **variables,
    )


def words_of(done: subprocess.CompletedProcess[str]) -> str:
    return re.sub(r"\s+", " ", done.stderr)


def test_cuda_on_without_nvcc_stops_with_the_reason(tmp_path: Path) -> None:
    # A CUDACXX that does not exist keeps CMake from finding another.
    done = configure(
        tmp_path, "-DCLIPWEATHER_CUDA=on", CUDACXX="no-such-nvcc", PATH="/usr/bin:/bin"
    )
    assert done.returncode != 0
    assert "CLIPWEATHER_CUDA=on, but no working nvcc was found" in words_of(done)


def test_cuda_auto_without_nvcc_builds_the_rest(tmp_path: Path) -> None:
    done = configure(tmp_path, CUDACXX="no-such-nvcc", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert "no working nvcc was found" in (tmp_path / "build.ninja").read_text()


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on PATH")
def test_an_architecture_that_nvcc_does_not_know_stops_with_its_number(tmp_path: Path) -> None:
    done = configure(tmp_path, "-DCLIPWEATHER_CUDA_ARCHS=80,79")
    assert done.returncode != 0
    assert "CLIPWEATHER_CUDA_ARCHS names 79, this nvcc knows 75" in words_of(done)


# ---- what a source distribution holds ------------------------------------------------------------


def test_the_sdist_holds_all_that_a_build_needs(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skipped = shutil.ignore_patterns("build", "dist", ".*", "shared", "*.so", "__pycache__")
    shutil.copytree(ROOT, source, ignore=skipped)
    done = subprocess.run(
        [sys.executable, "-c", "import setuptools.build_meta as b; b.build_sdist('out')"],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (archive,) = (source / "out").glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    needed = {"CMakeLists.txt", "setup.py", "pyproject.toml", "README.md", "LICENSE"}
    for folder in ("csrc", "clipweather_fast", "tests", "docs", "examples", "configs"):
        paths = (path for path in (source / folder).rglob("*") if path.is_file())
        needed |= {str(path.relative_to(source)) for path in paths}
    made = {name for name in needed if "__pycache__" in name or ".egg-info" in name}
    assert needed - made - held == set()
