"""The ceilings of this machine, measured in the same run as the results they judge."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from benchmarks import machine

__all__ = ["measured", "synchronised"]

#: Lanes of one multiprocessor that can start a 32-bit instruction in one cycle (sm_80 to sm_120; a
#: GA100 has 64).
_LANES = {"8.0": 64}
_LANES_DEFAULT = 128


def synchronised() -> float:
    """A clock that waits for the device: the timer of every benchmark on a GPU."""
    torch.cuda.synchronize()
    return time.perf_counter()


def _best(function: Callable[[], object], device: str, rounds: int) -> float:
    clock = synchronised if device == "cuda" else time.perf_counter
    function()
    times = []
    for _ in range(rounds):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def _copy(device: str) -> float:
    """Bytes read plus bytes written per second by a copy far larger than any cache."""
    count = (1 << 28) if device == "cuda" else (1 << 25)
    source = torch.ones(count, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device, 7)


def _matmul(device: str, dtype: torch.dtype) -> float:
    """Operations per second of a large matrix product."""
    size = 1024 if device == "cpu" else 8192 if dtype != torch.float32 else 4096
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: a @ b, device, 5)


def measured(device: str) -> dict[str, float]:
    """Copy bandwidth, matrix products, and the rate of multiply-adds outside matrix units.

    On the CPU that rate is taken from the fp32 matrix product, which keeps the vector units full.
    On a GPU it is arithmetic: multiprocessors × lanes × highest clock, one instruction each.
    """
    roofs = {"copy_bytes_per_s": _copy(device)}
    dtypes = (torch.float32, torch.bfloat16)
    for dtype in dtypes:
        roofs[f"matmul_{str(dtype).removeprefix('torch.')}_flops"] = _matmul(device, dtype)
    if device == "cuda":
        facts = machine.facts(device)
        lanes = _LANES.get(facts["compute_capability"], _LANES_DEFAULT)
        clock = facts["max_clock_mhz"] * 1e6
        roofs["instructions_per_s"] = facts["multiprocessors"] * lanes * clock
    else:
        roofs["fma_per_s"] = roofs["matmul_float32_flops"] / 2
    return roofs
