"""One case of the whole networks: every side is built, checked and timed under a limit of time.

Checked twice: on a small picture against plain PyTorch in float64, where ours may be off by twice
the error of plain PyTorch in the same dtype and a few units in the last place; and at the size that
is timed, against plain PyTorch in float32, where every side must be right.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.correctness import WrongResult
from benchmarks.models import picture_sides as sides
from benchmarks.models.picture_work import flops
from clipweather_fast.speed import Times, in_turn
from clipweather_fast.speed.clock import finisher

__all__ = [
    "AS_PEOPLE_RUN",
    "PictureCase",
    "PictureSize",
    "checked",
    "fitting_pace",
    "pictures",
    "run",
]

#: Largest difference in float32 at full size, for values in [0, 1].
TOLERANCE = 1e-3
#: Likeness to the float32 picture in 16 bits, in dB: of ours, and of the others, whose precision is
#: theirs to choose. Records say what it was; the project's goal for ours is 50.
LEAST_DECIBELS, LEAST_DECIBELS_OF_OTHERS = 40.0, 30.0
#: Units in the last place beyond twice plain PyTorch's own error on the small picture.
UNITS = 16
SMALL = (120, 180)
#: The name of a side that computes something else begins so.
UNLIKE = "transweather"
#: The sides of a second look, with the allocator of the C library as it comes.
AS_PEOPLE_RUN = ("eager sdpa", "transweather float32")
#: So many sides take part in every case: ours and the first other.
ALWAYS = 2
#: On a CPU a case gets its limit so many times at most.
MOST_PACE = 2.5


@dataclass(frozen=True)
class PictureSize:
    """A batch of pictures and the network it goes through."""

    name: str
    network: str
    n: int
    h: int
    w: int
    given_prior: bool = False


@dataclass(frozen=True)
class PictureCase:
    """One row.

    Attributes:
        size: what is restored.
        dtype: the precision of all sides.
        scope: the smallest scope that has it.
        sides: who takes part beside ours, the most telling first.
        limit: seconds for checking and timing; exporting, compiling and packing do not count.
    """

    size: PictureSize
    dtype: torch.dtype
    scope: str
    sides: tuple[str, ...]
    limit: float = 30.0
    direction: str = "forward"

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    @property
    def name(self) -> str:
        return f"{self.size.name}, {self.dtype_name}, {self.direction}"


@dataclass
class Side:
    """A contestant that was built and whose first result was right."""

    call: Callable[[], Tensor]
    built_s: float
    first_s: float
    found: dict[str, Any]


def fitting_pace(left_s: float, wanted_s: float, device: str) -> float:
    """How many times its limit a case may use, by what is left of the run and what its cases want.

    On a CPU more than once where time is left over, for rounds that agree with each other. Never on
    a GPU: its rounds agree sooner, and the machine may be lent for minutes.
    """
    return min(MOST_PACE if device == "cpu" else 1.0, max(0.0, left_s) / wanted_s)


def run(case: PictureCase, device: str, most: int, pace: float = 1.0) -> dict[str, Any]:
    """The record of one case.

    Ours and the first other side always take part, the next ones while less than half of the limit
    is used up and there is time for two calls of one more. What counts are second and later calls,
    of all sides alike; first calls where ours and the first other take longer than the limit. Who
    was left out is said, with the reason.

    Args:
        case: what to measure.
        device: "cpu" or "cuda".
        most: rounds.
        pace: times the limit that the run's own time leaves; under a half nothing is
            compiled.

    Raises:
        WrongResult: ours differs from plain PyTorch.
    """
    # What earlier cases compiled counts against PyTorch's limit. Not between two sides: what is
    # compiled already would be compiled again while it is timed.
    torch._dynamo.reset()
    sides.prepare(case.sides, case.size, device)
    error = _error_on_small(case, device)
    images = pictures(case.size).to(device)
    limit = pace * case.limit
    left, taking_part, refused = limit, {}, {}
    for number, name in enumerate(("ours", *case.sides)):
        hurried = name.startswith("compile") and pace < 0.5
        first = [side.first_s for side in taking_part.values()]
        needed = max(limit / 2, sum(first) + 2 * max(first, default=0.0))
        if number >= ALWAYS and (left < needed or hurried):
            whose = "run" if hurried else "case"
            refused[name] = f"left out: the {whose}'s time was used up"
            continue
        began = time.perf_counter()
        try:
            side = _begun(name, case, device, images)
        except (sides.SideUnavailable, WrongResult, RuntimeError) as reason:
            if name == "ours":
                raise
            refused[name] = (str(reason) or type(reason).__name__).splitlines()[0][:200]
            continue
        taking_part[name] = side
        left -= time.perf_counter() - began - side.built_s
    first_s = {name: side.first_s for name, side in taking_part.items()}
    kept, left = _with_second_calls(first_s, left, limit)
    for name in taking_part.keys() - set(kept):
        refused[name] = f"left out: no time for a second call, the first took {first_s[name]:.1f} s"
    times = in_turn(
        {name: taking_part[name].call for name in kept},
        {name: first_s[name] for name in kept},
        limit=left,
        finish=finisher(torch.device(device)),
        most=most,
    )
    contestants = {name: taking_part[name].found | _figures(times[name]) for name in kept}
    return _record(case, contestants, refused, error)


def _with_second_calls(
    first: dict[str, float], left: float, limit: float
) -> tuple[list[str], float]:
    """Who is called a second time, and the seconds for it.

    The last sides, which tell the least, make room. Ours and the first other may go beyond the
    limit once, for a round within it; if theirs is longer, all sides stay with their first calls.
    """
    kept = list(first)
    while len(kept) > ALWAYS and sum(first[name] for name in kept) > left:
        kept.pop()
    one_round = sum(first[name] for name in kept)
    if one_round > max(left, limit):
        return list(first), left
    return kept, max(left, one_round)


def _begun(name: str, case: PictureCase, device: str, images: Tensor) -> Side:
    """Builds a side, calls it for the first time and checks what it gives."""
    finish = finisher(torch.device(device))
    began = time.perf_counter()
    call = partial(sides.build(name, case.size, case.dtype, device), images)
    if name.startswith("compile"):
        call()
        finish()
    built = time.perf_counter() - began
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
    began = time.perf_counter()
    restored = call()
    finish()
    first = time.perf_counter() - began
    found: dict[str, Any] = {"build_s": round(built, 2)}
    if device == "cuda":
        found["peak_bytes"] = torch.cuda.max_memory_allocated() - held
    return Side(call, built, first, found | checked(name, case, device, restored.cpu()))


# ---- what is right -----------------------------------------------------------------------------


def pictures(size: PictureSize) -> Tensor:
    """(N, 3, H, W) in [0, 1]: smooth light and dark, and noise."""
    generator = torch.Generator().manual_seed(size.h)
    coarse = torch.rand(size.n, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (size.h, size.w), mode="bilinear")
    noise = 0.1 * torch.randn(smooth.shape, generator=generator)
    return (0.8 * smooth + 0.1 + noise).clamp(0, 1)


@cache
def _truth(size: PictureSize, index: int, device: str) -> Tensor:
    """One picture of a batch in plain PyTorch and float32."""
    call = sides.build("eager sdpa", size, torch.float32, device)
    return call(pictures(size)[index : index + 1].to(device)).cpu()


def checked(name: str, case: PictureCase, device: str, restored: Tensor) -> dict[str, Any]:
    """How far the first and the last picture of the batch are from the truth.

    Raises:
        WrongResult: too far.
    """
    size = case.size
    if restored.shape != (size.n, 3, size.h, size.w) or not bool(restored.isfinite().all()):
        raise WrongResult(f"{name}: not finite, or of shape {tuple(restored.shape)}")
    if name.startswith(UNLIKE):
        return {}
    difference, squares = 0.0, 0.0
    for index in sorted({0, size.n - 1}):
        apart = restored[index : index + 1].float() - _truth(size, index, device)
        difference = max(difference, float(apart.abs().max()))
        squares = max(squares, float(apart.square().mean()))
    decibels = -10 * math.log10(max(squares, 1e-20))
    if case.dtype == torch.float32:
        right = difference <= TOLERANCE
    else:
        right = decibels >= (LEAST_DECIBELS if name == "ours" else LEAST_DECIBELS_OF_OTHERS)
    if not right:
        raise WrongResult(f"{name}: off by {difference:.3g}, {decibels:.1f} dB")
    return {"difference": difference, "decibels": round(decibels, 1)}


def _error_on_small(case: PictureCase, device: str) -> float:
    """Ours against float64 on a small picture that is padded on both sides.

    Raises:
        WrongResult: the error is more than rounding explains.
    """
    size = case.size
    small = PictureSize("small", size.network, 1, *SMALL, given_prior=size.given_prior)
    image = pictures(small).to(device)
    truth = _small_truth(small, device)
    errors = {}
    for name in ("ours", "eager sdpa"):
        restored = sides.build(name, small, case.dtype, device)(image).double()
        errors[name] = float((restored - truth).abs().max())
    allowed = 2 * errors["eager sdpa"] + UNITS * torch.finfo(case.dtype).eps
    if not errors["ours"] <= allowed:
        raise WrongResult(f"ours: off by {errors['ours']:.3g}, allowed is {allowed:.3g}")
    return errors["ours"]


@cache
def _small_truth(small: PictureSize, device: str) -> Tensor:
    plain = sides.Plain(sides.network(small.network, small.given_prior), torch.float64, device)
    with sides.pytorch_alone(), torch.no_grad():
        restored: Tensor = plain(pictures(small).to(device).double())
    return restored.clamp(0, 1)


# ---- the record --------------------------------------------------------------------------------


def _figures(times: Times) -> dict[str, Any]:
    found: dict[str, Any] = {
        "layout": "channels_last",
        "threads": torch.get_num_threads(),
        "median_s": times.median,
        "p20_s": times.quantile(0.2),
        "p80_s": times.quantile(0.8),
        "rounds": times.rounds,
    }
    return found | ({"first_call": True} if times.first_call else {})


def _record(
    case: PictureCase, found: dict[str, dict[str, Any]], refused: dict[str, str], error: float
) -> dict[str, Any]:
    size = case.size
    work = size.n * flops(size.network, size.given_prior, size.h, size.w)
    return {
        "name": case.name,
        "size": vars(size),
        "dtype": case.dtype_name,
        "direction": case.direction,
        "scope": case.scope,
        "layout": "channels_last",
        "matrix": True,
        "bytes": 2 * 3 * 4 * size.n * size.h * size.w,
        "flops": work,
        "instructions": 0,
        "error": error,
        "contestants": found,
        "refused": refused,
    }
