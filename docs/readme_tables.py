"""Writes the README's tables that follow from the code: `make tables`, or with --check just look.

The backends' table asks every operator's own `why_not` predicates, with tensors that only claim
their device, so it comes out the same on a machine without a GPU.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from clipweather_fast import env, installation, ops
from clipweather_fast.ops import _native, _triton

README = Path(__file__).resolve().parent.parent / "README.md"
DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
#: The device each backend is for; `reference` runs wherever PyTorch does.
DEVICES = {"cuda": "cuda", "triton": "cuda", "cpu": "cpu", "reference": "cpu"}


def variables() -> Iterator[str]:
    yield "| variable | values | meaning |"
    yield "| --- | --- | --- |"
    for name, variable in sorted(env.VARIABLES.items()):
        values = variable.values.replace("|", "\\|")
        yield f"| `{name}` | {values} | {variable.meaning} |"


def backends() -> Iterator[str]:
    yield "| operator | " + " | ".join(f"`{name}`" for name in ops.BACKENDS) + " |"
    yield "| --- |" + " --- |" * len(ops.BACKENDS)
    with ExitStack() as stack:
        # As on a machine that has everything: what remains is what the kernels themselves can do.
        stack.enter_context(mock.patch.object(_native, "why_not_loaded", return_value=None))
        stack.enter_context(mock.patch.object(_native, "why_not_cuda_built", return_value=None))
        stack.enter_context(mock.patch.object(_triton, "_why_not_runnable", return_value=None))
        stack.enter_context(mock.patch.object(_triton, "interpreted", return_value=False))
        stack.enter_context(FakeTensorMode())
        for operator in sorted(installation.SAMPLES):
            cells = (_dtypes(operator, backend) for backend in ops.BACKENDS)
            yield f"| `{operator}` | " + " | ".join(cells) + " |"


def _dtypes(operator: str, backend: str) -> str:
    """The dtypes this backend takes, or its reason for taking none."""
    taken, reason = [], ""
    for name, dtype in DTYPES.items():
        arguments = installation.sample(operator, DEVICES[backend], dtype)
        answer = ops.explain(getattr(ops, operator), *arguments)[backend]
        if answer.startswith("yes"):
            taken.append(name)
        else:
            reason = answer
    return " ".join(taken) or reason


TABLES = {"backends": backends, "variables": variables}


def current(text: str) -> str:
    """The README with each table between its markers written anew."""
    for name, rows in TABLES.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        table = "\n".join(rows())
        text, count = re.subn(
            f"{begin}.*?{end}", lambda _, t=f"{begin}\n{table}\n{end}": t, text, flags=re.DOTALL
        )
        if count != 1:
            raise SystemExit(f"README.md must contain {begin} ... {end} once, found {count} times")
    return text


if __name__ == "__main__":
    old = README.read_text()
    new = current(old)
    if sys.argv[1:] == ["--check"]:
        sys.exit("README.md: run `make tables`" if old != new else 0)
    README.write_text(new)
