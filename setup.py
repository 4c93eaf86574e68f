"""Builds the native core `clipweather_fast._C` with CMake and ninja.

Everything declarative is in pyproject.toml; this file only teaches setuptools to run CMake.
The environment variables it obeys are documented in `clipweather_fast/env.py`.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt in a folder that outlives the call, so that an editable
    install rebuilds only what changed."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = Path(self.build_temp).resolve() / "cmake"
        build.mkdir(parents=True, exist_ok=True)
        cuda = os.environ.get("CLIPWEATHER_CUDA", "auto")
        if cuda not in ("auto", "on", "off"):
            raise SystemExit(f"CLIPWEATHER_CUDA must be auto, on or off, got {cuda!r}")
        arguments = [
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCLIPWEATHER_OUTPUT_DIR={target.parent}",
            f"-DCLIPWEATHER_OUTPUT_NAME={target.name}",
            f"-DCLIPWEATHER_CUDA={cuda}",
            f"-DCLIPWEATHER_CUDA_ARCHS={os.environ.get('CLIPWEATHER_CUDA_ARCHS', '')}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
        ]
        cmake = self._tool("cmake")
        # A cache made by another CMake or Python (an isolated build's) names paths that are gone.
        subprocess.run(
            [cmake, "--fresh", "-S", ROOT, "-B", build, "-G", "Ninja", *arguments], check=True
        ) if self._stale(build) else subprocess.run(
            [cmake, "-S", ROOT, "-B", build, "-G", "Ninja", *arguments], check=True
        )
        jobs = [f"-j{self.parallel}"] if self.parallel else []
        subprocess.run([cmake, "--build", build, *jobs], check=True)

    @staticmethod
    def _stale(build: Path) -> bool:
        cache = build / "CMakeCache.txt"
        if not cache.exists():
            return False
        for line in cache.read_text().splitlines():
            name, _, value = line.partition("=")
            if name.startswith(("CMAKE_MAKE_PROGRAM:", "CMAKE_COMMAND:")) and not (
                value and Path(value).exists()
            ):
                return True
        return False

    @staticmethod
    def _tool(name: str) -> str:
        found = shutil.which(name)
        if found is None:
            raise SystemExit(f"{name} was not found; `pip install {name}` provides it")
        return found


setup(
    ext_modules=[Extension("clipweather_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
