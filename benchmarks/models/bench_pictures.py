"""Whole networks from picture to picture: what a user waits for, and what the machine could do.

Ours is a :class:`Restorer` called as users call it, on a batch in memory; the prior encoder takes
part, with random weights, unless a case says that the prior is given. The sides are told of in
``picture_sides.py``, how they are checked and timed in ``picture_contest.py``. The roof is that of
the network's true floating-point operations at the rate of a matrix product of the same dtype in
the same run.

Every case has a limit of time. When it is used up further sides are left out, so that second calls
can be timed of all that take part: a first call has in it what a program does once. ``rounds`` says
how many there were, ``first_call`` that there was no time for a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.models.picture_contest import PictureCase, PictureSize
from benchmarks.shapes import PICTURES

TOPIC = "pictures"
#: On a GPU compiling takes minutes, and gets cases and a result file of its own.
COMPILING = " compiled"
BASE, SMALL, TINY, FIELD = (
    "clipweather_base",
    "clipweather_small",
    "clipweather_tiny",
    "transweather",
)
#: Beside ours, from the most telling to the least.
ON_CPU = ("eager sdpa", "openvino", "onnxruntime", "eager", "eager channels-last", "transweather")
#: Where compiling is worth its minute: (network, picture), in both precisions.
COMPILED = {(BASE, name) for name in PICTURES} | {(TINY, "480x720")}
#: And its two minutes.
AUTOTUNED = {
    (BASE, "256x256", torch.float32),
    (BASE, "256x256", torch.bfloat16),
    (BASE, "480x720", torch.float32),
}
HEADLINE = {(BASE, "256x256"), (BASE, "480x720"), (TINY, "480x720")}
#: Batches by network; the largest at small pictures only.
BATCHES = {BASE: (1, 4, 8), SMALL: (1, 4, 8), TINY: (1, 4, 8), FIELD: (1, 4)}
MOST_PIXELS = 8 * 480 * 720
#: Times the usual limit that a picture of full HD gets.
LIMITS = {"256x256": 20.0, "480x720": 40.0, "1080p": 90.0}
#: Of the smaller networks a part of it is enough.
SHARES = {BASE: 1.0, SMALL: 0.5, TINY: 0.4, FIELD: 0.5}


def topic(case: PictureCase) -> str:
    """A result file for each network, so that they can be measured one at a time."""
    compiled = "_compiled" * case.size.name.endswith(COMPILING)
    return f"{TOPIC}_{case.size.network}{compiled}"


def sides(case: PictureCase, scope: str) -> tuple[str, ...]:
    """Who takes part in a run of a scope: on a CPU compiling takes a minute, tuning two."""
    if scope == "full" or case.size.name.endswith(COMPILING):
        return case.sides
    compiled = (case.size.network, case.dtype) == (BASE, torch.float32)
    kept = ("compile",) if compiled else ()
    return tuple(side for side in case.sides if side in kept or not side.startswith("compile"))


def second_look(case: PictureCase) -> bool:
    """With glibc's allocator as it comes: the full network and the field's as people run them."""
    return (case.size.network, case.size.n) == (BASE, 1) and not case.size.given_prior


def cases(device: str) -> list[PictureCase]:
    return list(_on_gpu() if device == "cuda" else _on_cpu())


def _size(network: str, picture: str, n: int = 1, given_prior: bool = False) -> PictureSize:
    h, w = {**PICTURES, "720p": (720, 1280), "128x128": (128, 128)}[picture]
    batch = f" batch {n}" if n > 1 else ""
    prior = " prior given" if given_prior else ""
    return PictureSize(f"{network} {picture}{batch}{prior}", network, n, h, w, given_prior)


def _on_cpu() -> Iterator[PictureCase]:
    tiny = _size(TINY, "128x128", 2)
    yield PictureCase(tiny, torch.float32, "quick", ("eager sdpa",), limit=1.0)
    yield PictureCase(tiny, torch.bfloat16, "quick", ("eager sdpa",), limit=1.0)
    for network, batches in BATCHES.items():
        for picture, (h, w) in PICTURES.items():
            for n in batches:
                if n * h * w > max(MOST_PIXELS, 4 * h * w):
                    continue
                for dtype in (torch.float32, torch.bfloat16):
                    yield _case(network, picture, n, dtype)
    for picture in PICTURES:
        size = _size(BASE, picture, given_prior=True)
        limit = LIMITS[picture] / 2
        yield PictureCase(size, torch.float32, "full", ("eager sdpa",), limit)


def _case(network: str, picture: str, n: int, dtype: torch.dtype) -> PictureCase:
    sides = [side for side in ON_CPU if side != network]
    if n == 1 and (network, picture) in COMPILED:
        sides.insert(2, "compile")
    if n == 1 and (network, picture, dtype) in AUTOTUNED:
        sides.insert(3, "compile max-autotune")
    if n > 1 or network != BASE:
        sides = [side for side in sides if side != "transweather"]
    scope = "headline" if n == 1 and (network, picture) in HEADLINE else "full"
    limit = LIMITS[picture] * SHARES[network]
    return PictureCase(_size(network, picture, n), dtype, scope, tuple(sides), limit)


def _on_gpu() -> Iterator[PictureCase]:
    eager = ("eager", "eager channels-last", "eager sdpa")
    compiled = "compile max-autotune"
    half = (torch.bfloat16, torch.float16)
    yield PictureCase(_size(TINY, "128x128", 2), torch.float32, "quick", eager, limit=2.0)
    for dtype in (*half, torch.float32):
        for network in (BASE, TINY):
            for picture, n in (("256x256", 1), ("256x256", 16), ("720p", 1), ("1080p", 1)):
                scope = "full" if dtype == torch.float16 and n > 1 else "headline"
                size = _size(network, picture, n)
                yield PictureCase(
                    size, dtype, scope, ("eager sdpa", "ours captured", *eager[:2]), 3
                )
    for picture in ("256x256", "1080p"):
        given = _size(BASE, picture, given_prior=True)
        yield PictureCase(given, torch.bfloat16, "headline", ("eager sdpa", "ours captured"), 3)
        size = _size(BASE, picture)
        compiling = PictureSize(f"{size.name}{COMPILING}", BASE, 1, size.h, size.w)
        yield PictureCase(compiling, torch.bfloat16, "headline", ("eager sdpa", compiled), 10)


def test_pictures(case: PictureCase, pictured: Any) -> None:
    pictured(case)
