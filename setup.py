"""Builds the native core `clipweather_fast._C` with CMake and ninja.

Everything declarative is in pyproject.toml; this file only teaches setuptools to run CMake.
The environment variables it obeys are documented in `clipweather_fast/env.py`.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


def build_choice(name: str, default: str, pattern: str, meaning: str) -> str:
    """The value of a build-time environment variable, or a clear stop."""
    value = os.environ.get(name) or default
    if re.fullmatch(pattern, value) is None:
        raise SystemExit(f"{name} must be {meaning}, got {value!r}")
    return value


def tool(name: str) -> str:
    """The path of a build tool that the isolated build, or the user, installed."""
    found = shutil.which(name)
    if found is None:
        raise SystemExit(f"{name} was not found; `pip install {name}` provides it")
    return found


class CMakeBuild(build_ext):
    """Configures and builds CMakeLists.txt in a folder of the source tree that outlives the call.

    setuptools gives an editable install a temporary build folder; with our own, the next
    `pip install -e .` recompiles only what changed.
    """

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"
        cuda = build_choice("CLIPWEATHER_CUDA", "auto", "auto|on|off", "auto, on or off")
        archs = build_choice(
            "CLIPWEATHER_CUDA_ARCHS",
            "",
            r"(\d+[af]?([,; ]\d+[af]?)*)?",
            "compute capabilities without the dot, separated by commas, e.g. 80,90",
        )
        strict = build_choice("CLIPWEATHER_WERROR", "off", "on|off", "on or off")
        cmake, ninja = tool("cmake"), tool("ninja")
        configure = [
            cmake,
            *("-S", str(ROOT), "-B", str(build), "-G", "Ninja"),
            # Named on every call: an isolated build's tools lie in a new folder each time.
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DCLIPWEATHER_OUTPUT_DIR={target.parent}",
            f"-DCLIPWEATHER_OUTPUT_NAME={target.name}",
            f"-DCLIPWEATHER_CUDA={cuda}",
            f"-DCLIPWEATHER_CUDA_ARCHS={archs}",
            f"-DCLIPWEATHER_WERROR={strict}",
            f"-DCMAKE_BUILD_TYPE={'Debug' if self.debug else 'Release'}",
        ]
        if self._moved(build):
            shutil.rmtree(build)
        jobs = [f"-j{self.parallel}"] if self.parallel else []
        for command in (configure, [cmake, "--build", str(build), *jobs]):
            if subprocess.run(command).returncode != 0:
                raise SystemExit("the native core could not be built; CMake says why above")

    @staticmethod
    def _moved(build: Path) -> bool:
        """Whether the cached configuration is that of another folder, which CMake refuses."""
        cache = build / "CMakeCache.txt"
        return cache.exists() and f"CMAKE_HOME_DIRECTORY:INTERNAL={ROOT}\n" not in cache.read_text()


setup(
    ext_modules=[Extension("clipweather_fast._C", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
