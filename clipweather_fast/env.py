"""Every environment variable the project obeys: name, default, meaning.

Read through :func:`read`, at the moment of use, so that a test or a notebook can change them.
``CLIPWEATHER_CPU_ISA`` alone is read once, by the native core when it is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

__all__ = ["VARIABLES", "Variable", "read"]


@dataclass(frozen=True)
class Variable:
    """One environment variable: its default, the values it takes and what it does."""

    default: str
    values: str
    meaning: str


VARIABLES: dict[str, Variable] = {
    "CLIPWEATHER_BACKEND": Variable(
        "auto",
        "auto | cuda | triton | cpu | reference",
        "backend of every operator call that names none; a named backend runs or raises",
    ),
    "CLIPWEATHER_CPU_ISA": Variable(
        "",
        "baseline | avx2 | avx512 | avx512_bf16 | amx",
        "forces the instruction set of the CPU kernels (default: the fastest here)",
    ),
    "CLIPWEATHER_CUDA": Variable(
        "auto",
        "auto | on | off",
        "at build time: build the CUDA kernels if nvcc is found, insist on them, or leave them out",
    ),
    "CLIPWEATHER_CUDA_ARCHS": Variable(
        "",
        "e.g. 80,90",
        "at build time: CUDA architectures (default: 80, 86, 89, 90, 100, 120 and PTX)",
    ),
    "CLIPWEATHER_MAX_PIXELS": Variable(
        "150000000",
        "a number",
        "picture files with more pixels are refused before they are decoded",
    ),
    "CLIPWEATHER_WERROR": Variable(
        "off",
        "on | off",
        "at build time: compiler warnings stop the build",
    ),
}


def read(name: str) -> str:
    """The value of a declared variable, or its default. ``KeyError`` for an undeclared one."""
    return os.environ.get(name) or VARIABLES[name].default
