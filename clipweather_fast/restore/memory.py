"""How much memory a network needs for a picture of a size, and how much a device has.

The network is run on tensors without memory (PyTorch's fake tensors) of two sizes, and the bytes
that are alive at once are counted. Between and beyond the two sizes the peak is taken as
a · pixels + b · pixels²; the square is attention that stores its scores. What libraries need inside
one operator is not seen: ``MARGIN`` stands for it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clipweather_fast.modules._joint_keys import joint_keys

__all__ = ["Estimate", "available_bytes", "estimate"]

#: Times the counted bytes: what operators need inside, and what an allocator cannot use.
MARGIN = 1.5
#: Of what is free, so much is used; the rest is for others.
SHARE = {"cpu": 0.6, "cuda": 0.85}
#: Sides of the two trial pictures.
TRIALS = (512, 2048)
#: Taken for a network that does not run on fake tensors: clipweather_base needs an eighth.
UNKNOWN_BYTES_PER_PIXEL = 1024


@dataclass(frozen=True)
class Estimate:
    """Bytes a pass needs beyond the weights, by the pixels of all its pictures together.

    Attributes:
        per_pixel: a.
        per_pixel_squared: b.
        paused: what a tile holds while it waits for the others' keys, by its pixels.
    """

    per_pixel: float
    per_pixel_squared: float = 0.0
    paused: float = 0.0

    def bytes(self, pixels: int) -> int:
        """Peak of a pass over so many pixels, with the margin."""
        return int(MARGIN * (self.per_pixel * pixels + self.per_pixel_squared * pixels**2))

    def paused_bytes(self, pixels: int) -> int:
        """What all tiles of a picture hold while they wait, with the margin."""
        return int(MARGIN * self.paused * pixels)

    def side(self, limit: int, step: int) -> int:
        """The largest multiple of ``step`` whose square fits into ``limit`` bytes; at least one."""
        a, b = MARGIN * self.per_pixel, MARGIN * self.per_pixel_squared
        root = (a * a + 4 * b * limit) ** 0.5
        pixels = 2 * limit / (a + root) if a + root else 0.0
        return max(step, int(pixels**0.5) // step * step)


def estimate(
    network: Callable[[Tensor], Tensor], device: torch.device, sizes: Sequence[int] = TRIALS
) -> Estimate:
    """Counts what a network needs, in about a second and without computing anything.

    Args:
        network: (1, 3, H, W) float32 to (1, 3, H, W).
        device: where its parameters are.
        sizes: two sides of square pictures.
    """
    try:
        (small, _), (large, paused) = (_peak(network, device, side) for side in sizes)
    except Exception:  # a foreign network may do what fake tensors cannot
        return Estimate(UNKNOWN_BYTES_PER_PIXEL)
    few, many = (side**2 for side in sizes)
    square = (large / many - small / few) / (many - few)
    if square <= 0:
        return Estimate(small / few, paused=paused / many)
    return Estimate(max(0.0, small / few - square * few), square, paused / many)


def available_bytes(device: torch.device) -> int | None:
    """What a pass may take on a device; None: nothing is known."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(SHARE["cuda"] * (free + cached))
    if device.type != "cpu":
        return None
    found = [value for value in (_of_the_machine(), _of_the_container()) if value is not None]
    return int(SHARE["cpu"] * min(found)) if found else None


# ---- counting ----------------------------------------------------------------------------------


class _Living(TorchDispatchMode):
    """Counts the bytes of the tensors that are alive, and the most there were at once."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        results = func(*args, **(kwargs or {}))
        for value in tree_leaves(results):
            if isinstance(value, Tensor):
                self._count(value)
        self.peak = max(self.peak, self.now)
        return results

    def _count(self, value: Tensor) -> None:
        storage = value.untyped_storage()
        if storage._cdata in self._known:
            return
        size = storage.nbytes()
        self._known.add(storage._cdata)
        self.now += size
        weakref.finalize(storage, self._forget, storage._cdata, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class _Paused:
    """Counts what is alive where a layer asks for keys."""

    def __init__(self, living: _Living) -> None:
        self.living, self.most = living, 0

    def joined(self, layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
        self.most = max(self.most, self.living.now)
        return tokens


def _peak(network: Callable[[Tensor], Tensor], device: torch.device, side: int) -> tuple[int, int]:
    """Bytes alive at once, and the most while a layer asks for keys."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with torch.inference_mode(), FakeTensorMode(allow_non_fake_inputs=True), _Living() as living:
        paused = _Paused(living)
        image = torch.empty(1, 3, side, side, device=device)
        with joint_keys(paused):
            network(image.contiguous(memory_format=torch.channels_last))
    return int(living.peak), int(paused.most)


# ---- the machine -------------------------------------------------------------------------------


def _of_the_machine() -> int | None:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def _of_the_container() -> int | None:
    """What control groups leave, where a container has a limit."""
    for limit, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        (
            "/sys/fs/cgroup/memory/memory.limit_in_bytes",
            "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        ),
    ):
        try:
            return max(0, int(Path(limit).read_text()) - int(Path(used).read_text()))
        except (OSError, ValueError):
            continue  # no such file, or "max"
    return None
