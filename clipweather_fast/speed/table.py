"""The measurements behind ``clipweather bench``: networks and sizes, ours and plain PyTorch."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from clipweather_fast.models import RestorationNetwork
from clipweather_fast.restore import Restorer
from clipweather_fast.restore.engine import fast_at_bfloat16
from clipweather_fast.speed.clock import Times, finisher, in_turn
from clipweather_fast.speed.networks import network_for_timing
from clipweather_fast.speed.plain import pytorch_alone

__all__ = ["SIZES", "Case", "Row", "WrongPicture", "measured", "precision"]

#: Width and height: a crop, a small photograph, full HD.
SIZES = ((256, 256), (720, 480), (1920, 1080))
#: Seconds for the rounds of one case; more make medians no steadier.
LONGEST_CASE = 4.0
#: Between a size and a larger one, times grow by this power of the pixels at most: attention.
GROWTH = 1.15
#: Largest difference of two float32 results in [0, 1]: sums in another order.
TOLERANCE = 1e-3
#: Smallest likeness of two results in 16 bits, each with roundings of its own.
LEAST_DECIBELS = 35.0


class WrongPicture(RuntimeError):
    """The fast network does not compute what the plain one computes."""


@dataclass(frozen=True)
class Case:
    """A network and a size in pixels."""

    model: str
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


@dataclass(frozen=True)
class Row:
    """What was found of a case.

    Attributes:
        case: which.
        dtype: the precision of both sides.
        fast, plain: seconds per picture of a :class:`Restorer` and of plain PyTorch; None where
            the case was left out.
        difference: the largest between the two results, for values in [0, 1].
        reason: why it was left out, else nothing.
    """

    case: Case
    dtype: str
    fast: Times | None = None
    plain: Times | None = None
    difference: float = 0.0
    reason: str = ""


def precision(dtype: str, device: torch.device) -> torch.dtype:
    """The dtype that a name stands for; "auto" is a Restorer's choice for 8-bit pictures."""
    if dtype == "auto":
        return torch.bfloat16 if fast_at_bfloat16(device) else torch.float32
    found: torch.dtype = getattr(torch, dtype)
    return found


def measured(
    cases: Sequence[Case], device: torch.device, dtype: torch.dtype, seconds: float
) -> Iterator[Row]:
    """Measures the cases one after the other; their order is best from fast to slow.

    Each result is compared before its time counts. A case that does not fit into the time that is
    left, by what the network took at a smaller size, is left out with that reason.

    Args:
        cases: grouped by network, small sizes first.
        device: where to compute.
        dtype: precision of both sides.
        seconds: for all of them together.

    Raises:
        WrongPicture: the two sides differ by more than rounding explains.
        ValueError, clipweather_fast.clip.EncoderUnavailable: a network cannot be built.
    """
    end = time.perf_counter() + seconds
    pair: _Pair | None = None
    for number, case in enumerate(cases):
        if pair is None or pair.model != case.model:
            pair = None  # its memory first
            pair = _Pair(case.model, network_for_timing(case.model), device, dtype)
        left = end - time.perf_counter()
        expected = pair.expected(case)
        if number and (left <= 0 or expected > left):
            words = f"it would take about {expected:.0f} s" if expected else "the time is over"
            yield Row(case, _name(dtype), reason=words)
            continue
        yield pair.row(case, end, len(cases) - number)


class _Pair:
    """A network in a Restorer, and in plain PyTorch."""

    def __init__(
        self, model: str, network: RestorationNetwork, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.model, self.device, self.dtype = model, device, dtype
        self.restorer = Restorer(network, device=device, dtype=dtype)
        self.network = network
        self._known: tuple[Case, float] | None = None

    def expected(self, case: Case) -> float:
        """Seconds that both sides' first calls take, by what they took last; zero: unknown."""
        if self._known is None:
            return 0.0
        last, seconds = self._known
        return float(seconds * (case.pixels / last.pixels) ** GROWTH)

    def row(self, case: Case, end: float, cases: int) -> Row:
        """Checks and measures one case; so many share the time until the end."""
        generator = torch.Generator().manual_seed(case.pixels)
        image = torch.rand(1, 3, case.height, case.width, generator=generator).to(self.device)
        calls = {"fast": partial(self._fast, image), "plain": partial(self._plain, image)}
        finish = finisher(self.device)
        first, results = {}, {}
        for name, call in calls.items():
            began = time.perf_counter()
            try:
                results[name] = call()
                finish()
            except (torch.OutOfMemoryError, MemoryError):
                who = "PyTorch alone" if name == "plain" else "it"
                return Row(case, _name(self.dtype), reason=f"{who} does not fit into memory")
            first[name] = time.perf_counter() - began
        difference = self._compared(case, results["fast"], results["plain"])
        # A first call has what is done once in it: a second is worth more than the usual limit.
        share = (end - time.perf_counter()) / cases
        limit = min(share, max(LONGEST_CASE, sum(first.values())))
        times = in_turn(calls, first, limit=limit, finish=finish)
        self._known = case, times["fast"].median + times["plain"].median
        return Row(case, _name(self.dtype), times["fast"], times["plain"], difference)

    def _fast(self, image: Tensor) -> Tensor:
        restored: Tensor = self.restorer(image)
        return restored

    def _plain(self, image: Tensor) -> Tensor:
        lower = self.dtype != torch.float32
        cast = torch.autocast(self.device.type, dtype=self.dtype, enabled=lower)
        with pytorch_alone(), torch.inference_mode(), cast:
            restored: Tensor = self.network(image)
            return restored.float().clamp(0, 1)

    def _compared(self, case: Case, fast: Tensor, plain: Tensor) -> float:
        apart = (fast.float() - plain).abs()
        difference, error = float(apart.max()), float(apart.square().mean())
        if self.dtype == torch.float32:
            right = difference <= TOLERANCE
        else:
            right = error == 0 or -10 * math.log10(error) >= LEAST_DECIBELS
        if not (right and math.isfinite(difference)):
            raise WrongPicture(
                f"{case.model} at {case.width} x {case.height} in {_name(self.dtype)}: the results "
                f"of the kernels and of plain PyTorch differ by {difference:.2g} of the range"
            )
        return difference


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
