"""Compiles every shipped Triton configuration and prints registers, shared memory and spills.

``python benchmarks/triton_resources.py [--arch 90] [--only NAME]`` needs triton, but no GPU. It
ends with status 1 if a configuration spills registers or does not compile.

The protocol: a module ``clipweather_fast/ops/<op>/triton_kernels.py`` takes part by defining
``shipped_configurations()``, which returns a list of 4-tuples ``(kernel, signature, constexprs,
options)``, one for each kernel variant that a shipped network launches on a GPU:

- ``kernel``: the ``@triton.jit`` function;
- ``signature``: ``{argument: type}`` for the run-time arguments only: ``"*bf16"``, ``"*fp32"``,
  ``"i32"``, ``"i64"``, ``"fp32"``. A suffix ``":16"`` says that the pointer or size is divisible
  by 16, as launches of the networks' channel counts are;
- ``constexprs``: ``{argument: value}`` for every other argument; an absent pointer is ``None``;
- ``options``: what the launch passes beside the arguments, e.g. ``{"num_warps": 4}``.

They must come from the same table as the launches do, so that what is measured here is what runs.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

Configuration = tuple[Any, dict[str, str], dict[str, Any], dict[str, Any]]

PACKAGE = Path(__file__).parents[1] / "clipweather_fast"


@dataclass(frozen=True)
class Resources:
    """What a compiled kernel takes: registers per thread, shared bytes, stores of spilled ones."""

    registers: int
    shared: int
    spills: int


def configurations(only: str = "") -> Iterator[Configuration]:
    """The shipped configurations of every op whose kernels' names contain ``only``."""
    if str(PACKAGE.parent) not in sys.path:
        sys.path.insert(0, str(PACKAGE.parent))
    for path in sorted(PACKAGE.glob("ops/*/triton_kernels.py")):
        module = importlib.import_module(f"clipweather_fast.ops.{path.parent.name}.triton_kernels")
        if hasattr(module, "shipped_configurations"):
            for configuration in module.shipped_configurations():
                if only in configuration[0].__name__:
                    yield configuration


def label(configuration: Configuration) -> str:
    """A configuration in one line: kernel, element types, compile-time values."""
    kernel, signature, constexprs, options = configuration
    types = {t.split(":")[0] for t in signature.values() if t.startswith("*")}
    values = (f"{name}={value}" for name, value in constexprs.items() if value is not None)
    extra = (f"{name}={value}" for name, value in options.items())
    return " ".join([kernel.__name__, "/".join(sorted(types)), *values, *extra])


def compiled(configuration: Configuration, arch: int = 90) -> Any:
    """The configuration compiled for a GPU of this compute capability."""
    kernel, signature, constexprs, options = configuration
    missing = set(kernel.arg_names) ^ (set(signature) | set(constexprs))
    if missing:
        raise ValueError(f"{kernel.__name__}: arguments missing or unknown: {sorted(missing)}")
    types = {n: signature.get(n, "constexpr").split(":")[0] for n in kernel.arg_names}
    divisible = {
        (i,): [["tt.divisibility", 16]]
        for i, n in enumerate(kernel.arg_names)
        if signature.get(n, "").endswith(":16")
    }
    source = ASTSource(kernel, types, constexprs, divisible)
    return triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)


def resources(kernel: Any) -> Resources:
    """Read from the machine code itself. Only a spilled register is ever stored to local memory;
    the stack frame says nothing, as ptxas reserves some bytes without using them."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name],
            check=True,
            capture_output=True,
            text=True,
        ).stdout
    found = re.search(r"REG:(\d+)", text)
    if found is None or "EXIT" not in text:
        raise RuntimeError(f"cuobjdump printed no resource usage or no code:\n{text}")
    return Resources(int(found[1]), kernel.metadata.shared, len(re.findall(r"\bSTL\b", text)))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--arch", type=int, default=90, help="compute capability times ten")
    parser.add_argument("--only", default="", help="part of a kernel's name")
    arguments = parser.parse_args()
    print(f"triton {triton.__version__}, sm_{arguments.arch}: registers, shared bytes, spills")
    count, bad = 0, 0
    for configuration in configurations(arguments.only):
        count += 1
        used = resources(compiled(configuration, arguments.arch))
        bad += used.spills > 0
        mark = "  SPILLS" if used.spills else ""
        print(
            f"{used.registers:4d} {used.shared:6d} {used.spills:5d}  {label(configuration)}{mark}"
        )
    print(f"{count} configurations, {bad} with spills")
    return 1 if bad or not count else 0


if __name__ == "__main__":
    sys.exit(main())
