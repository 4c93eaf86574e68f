"""How much memory a network needs for a picture of a size, and how much a device has.

What a pass allocates is counted on two pictures (:mod:`.footprint`); between and beyond them the
peak is taken as c + a · pixels + b · pixels². The square is attention that stores its scores. What
is not seen, such as what libraries need inside one operator, ``MARGIN`` stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from clipweather_fast.models.network import RestorationNetwork
from clipweather_fast.restore.footprint import Call, dry_trace, fake_trace, growth

__all__ = ["Estimate", "available_bytes", "estimate"]

#: Times the counted bytes: what operators need inside, and what an allocator cannot use. With
#: glibc's, which keeps what is freed in pieces of up to 32 MiB, a picture of full HD takes up to
#: 1.47 times what is counted.
MARGIN = 1.5
#: Beside them: what libraries keep for each new size.
LIBRARIES = 48 << 20
#: Of what is free, so much is used; the rest is for others.
SHARE = {"cpu": 0.6, "cuda": 0.85}
#: Sides of the two trial pictures without memory.
TRIALS = (512, 2048)
#: Shorter side of the smaller real one. The other is twice it, so that in the deepest layer, too,
#: rows and columns can be told apart.
DRY_SIDE = 64
#: Taken for a network that does not run on fake tensors: clipweather_base needs an eighth.
UNKNOWN_BYTES_PER_PIXEL = 1024


@dataclass(frozen=True)
class Estimate:
    """Bytes a pass needs beyond the weights, by the pixels of all its pictures together.

    Attributes:
        per_pixel: a.
        per_pixel_squared: b.
        paused: what a tile holds while it waits for the others' keys, by its pixels.
        fixed: c.
    """

    per_pixel: float
    per_pixel_squared: float = 0.0
    paused: float = 0.0
    fixed: float = 0.0

    def bytes(self, pixels: int) -> int:
        """Peak of a pass over so many pixels, with the margin."""
        grown = self.per_pixel * pixels + self.per_pixel_squared * pixels**2
        return LIBRARIES + int(MARGIN * (self.fixed + grown))

    def paused_bytes(self, pixels: int) -> int:
        """What all tiles of a picture hold while they wait, with the margin."""
        return int(MARGIN * self.paused * pixels)

    def side(self, limit: int, step: int) -> int:
        """The largest multiple of ``step`` whose square fits into ``limit`` bytes; at least one."""
        a, b = MARGIN * self.per_pixel, MARGIN * self.per_pixel_squared
        left = max(0.0, limit - LIBRARIES - MARGIN * self.fixed)
        root = (a * a + 4 * b * left) ** 0.5
        pixels = 2 * left / (a + root) if a + root else 0.0
        return max(step, int(pixels**0.5) // step * step)


def estimate(
    network: Call, device: torch.device, model: nn.Module | None = None, frozen: bool = True
) -> Estimate:
    """Counts what a network needs, without computing what it computes.

    Args:
        network: (1, 3, H, W) float32 to (1, 3, H, W).
        device: where its parameters are.
        model: the module that ``network`` calls. If it is one of this package, on the CPU, this
            takes some hundredths of a second; else up to two seconds.
        frozen: whether it computes in its frozen form where it can; not if it is compiled.
    """
    if device.type == "cpu" and isinstance(model, RestorationNetwork) and _of_this_package(model):
        side = max(DRY_SIDE, model.size_multiple, model.minimum_size)
        for form in (frozen, False):  # on small pictures operators may choose by the size
            try:
                small, large = (dry_trace(network, k * side, 2 * k * side, form) for k in (1, 2))
            except Exception:  # hooks may do what results without meaning do not allow
                break
            found = growth(small, large)
            if found is not None:
                return Estimate(found.linear, found.square, found.paused, found.fixed)
    try:
        small, large = (fake_trace(network, side, side, device) for side in TRIALS)
    except Exception:  # a foreign network may do what fake tensors cannot
        return Estimate(UNKNOWN_BYTES_PER_PIXEL)
    few, many = small.pixels, large.pixels
    square = (large.peak / many - small.peak / few) / (many - few)
    paused = large.paused / many
    if square <= 0:
        return Estimate(small.peak / few, paused=paused)
    return Estimate(max(0.0, small.peak / few - square * few), square, paused)


def _of_this_package(model: nn.Module) -> bool:
    """Whether all layers are this package's and PyTorch's: these compute with tensors alone."""
    own = ("torch.nn.", "clipweather_fast.")
    return all(type(module).__module__.startswith(own) for module in model.modules())


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
