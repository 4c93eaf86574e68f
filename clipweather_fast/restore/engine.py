"""Runs a network over pictures: whole or in tiles, in the precision and the memory there is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.restore import memory
from clipweather_fast.restore.tiles import restore_in_tiles, smallest_tile, spans

__all__ = ["Engine", "PrecisionWarning", "Report"]

#: Up to so many pixels a pass is tried without asking what it needs: under 200 MB.
UNASKED_PIXELS = 1 << 20
#: Pictures of one pass; more gain nothing.
MOST_IMAGES = 8
#: Sides of the automatic tiles. At 2048 attention, whose cost grows with the square of a tile's
#: pixels, takes as long as everything else; larger tiles only make a picture slower.
LARGEST_TILE = 2048
#: Larger pictures are made smaller for their prior.
PRIOR_PIXELS = LARGEST_TILE**2
#: Pixels that are rounded at once.
BLOCK = 1 << 16
#: Steps of the tiles for a network that names no ``size_multiple``.
USUAL_MULTIPLE = 64


class PrecisionWarning(UserWarning):
    """A network gave NaN or infinity in low precision; the result was computed again in float32."""


@dataclass(frozen=True)
class Report:
    """What the last call of a Restorer did.

    Attributes:
        device: where.
        dtype: in which precision.
        tile: side of the largest tiles; None: the pictures were restored whole.
        passes: calls of the network.
        retries: passes repeated in float32 because of values that were not finite.
        halvings: how often memory ran out and the batch or the tile was halved.
    """

    device: str
    dtype: str = "float32"
    tile: int | None = None
    passes: int = 0
    retries: int = 0
    halvings: int = 0


class Engine:
    """A network with a device, a precision and a limit on what passes through at once.

    Args:
        model: (N, 3, H, W) in [0, 1] to the same; it is used in eval mode and moved to ``device``.
            Its ``encode_prior`` and ``size_multiple`` are used if it has them.
        device: where to compute.
        dtype: precision; "auto": bfloat16 for 8-bit pictures where the device is fast at it.
        tile: side of the tiles; "auto": as large as memory allows; None: never cut.
        overlap: pixels that tiles share.
        compile: call the network through ``torch.compile``.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        dtype: torch.dtype | Literal["auto"],
        tile: int | Literal["auto"] | None,
        overlap: int,
        compile: bool,
    ) -> None:
        # Any: what a module's attributes are, PyTorch does not say.
        self.model: Any = model.to(device).eval()
        self.device, self.dtype, self.tile, self.overlap = device, dtype, tile, overlap
        self.step = int(getattr(model, "size_multiple", USUAL_MULTIPLE))
        self.report = Report(str(device))
        self._encodes = hasattr(model, "encode_prior")
        self._call: Callable[..., Any] = torch.compile(model) if compile else model
        self._estimates: dict[torch.dtype, memory.Estimate] = {}
        # What memory has been found not to suffice for, until now.
        self._side_limit: float = math.inf
        self._image_limit = MOST_IMAGES

    def precision(self, given: torch.dtype) -> torch.dtype:
        """In what to compute pictures of a dtype.

        bfloat16 has 8 significant bits: enough for 8-bit pictures, not for deeper ones.
        """
        if self.dtype != "auto":
            return self.dtype
        if given == torch.uint8 and fast_at_bfloat16(self.device):
            return torch.bfloat16
        return torch.float32

    def restore(self, pairs: Sequence[tuple[Tensor, Tensor]], prior: Tensor | None = None) -> None:
        """Restores pictures of one size and dtype.

        Args:
            pairs: for each a picture (1, 3, H, W), and memory of its shape for the result.
            prior: of all of them; None: each gets its own.
        """
        pending = list(pairs)
        while pending:
            image = pending[0][0]
            precision = self.precision(image.dtype)
            side = self._side(image.shape[2], image.shape[3], precision)
            count = 1 if side else self._images(len(pending), image, precision)
            self.report = replace(self.report, dtype=_name(precision), tile=side)
            failure = ""
            try:
                with torch.inference_mode():
                    if side:
                        self._in_tiles(*pending[0], side, precision, prior)
                    else:
                        self._whole(pending[:count], precision, prior)
            except (RuntimeError, MemoryError) as error:
                # The words, not the error: that would keep the frames and their tensors alive.
                failure = _out_of_memory(error)
                if not failure:
                    raise
            if failure:
                self._halve(image.shape[2], image.shape[3], side, count, failure)
            else:
                del pending[:count]

    def encode_prior(self, image: Tensor) -> Tensor | None:
        """The prior of pictures (N, 3, H, W); None if the network has none.

        Pictures with more than ``PRIOR_PIXELS`` are averaged to fewer on their way to the device.
        Encoders look at 224 × 224 pixels or so; nothing that they would see is lost.
        """
        if not self._encodes:
            return None
        precision = self.precision(image.dtype)
        with torch.inference_mode():
            small = self._prepared(_reduced(image, PRIOR_PIXELS))
            prior: Tensor | None = self._autocast(precision, self.model.encode_prior, small)
            if prior is not None and not bool(prior.isfinite().all()):
                prior = self._autocast(torch.float32, self.model.encode_prior, small)
                self.report = replace(self.report, retries=self.report.retries + 1)
                if not bool(prior.isfinite().all()):
                    raise ArithmeticError(
                        "Restorer: the weather prior is NaN or infinity even in float32: bad "
                        "weights?"
                    )
        return prior

    # ---- one pass --------------------------------------------------------------------------

    def _whole(
        self, pairs: list[tuple[Tensor, Tensor]], precision: torch.dtype, prior: Tensor | None
    ) -> None:
        images = [self._prepared(image) for image, _ in pairs]
        batch = images[0] if len(images) == 1 else torch.cat(images)
        del images
        restored = self._pass(batch, precision, prior)
        for index, (_, out) in enumerate(pairs):
            store(restored[index : index + 1], out)

    def _in_tiles(
        self, image: Tensor, out: Tensor, side: int, precision: torch.dtype, prior: Tensor | None
    ) -> None:
        if prior is None:
            prior = self.encode_prior(image)
        restore_in_tiles(
            image,
            out,
            spans(image.shape[2], side, self.overlap, self.step),
            spans(image.shape[3], side, self.overlap, self.step),
            lambda tile: self._pass(self._prepared(tile), precision, prior),
            store,
        )

    def _prepared(self, image: Tensor) -> Tensor:
        """On the device, in [0, 1], channels-last. Integers travel as such: they are smaller."""
        if image.dtype == torch.uint16:
            image = image.to(torch.float32).div_(65535)  # devices know little of uint16
        here = image.to(self.device, non_blocking=True)
        x = here.to(torch.float32).contiguous(memory_format=torch.channels_last)
        return x if image.is_floating_point() else x.div_(torch.iinfo(image.dtype).max)

    def _pass(self, x: Tensor, precision: torch.dtype, prior: Tensor | None) -> Tensor:
        """(N, 3, h, w) to the same, float32 and finite; not yet clamped."""
        y = self._network(x, precision, prior)
        if not _finite(y) and precision != torch.float32:
            warnings.warn(
                f"the network gave values that are not finite in {_name(precision)}; the result "
                "was computed again in float32. dtype='float32' avoids the loss of time",
                PrecisionWarning,
                stacklevel=2,
            )
            self.report = replace(self.report, retries=self.report.retries + 1)
            y = self._network(x, torch.float32, prior)
        if not _finite(y):
            raise ArithmeticError(
                "Restorer: the network gives NaN or infinity even in float32: bad weights?"
            )
        return y

    def _network(self, x: Tensor, precision: torch.dtype, prior: Tensor | None) -> Tensor:
        def call(x: Tensor) -> Tensor:
            own = self.model.encode_prior(x) if self._encodes and prior is None else prior
            y: Tensor = self._call(x) if own is None else self._call(x, own)
            return y

        self.report = replace(self.report, passes=self.report.passes + 1)
        y: Tensor = self._autocast(precision, call, x)
        if y.shape != x.shape:
            raise ValueError(
                f"Restorer: the network must give {tuple(x.shape)}, it gave {tuple(y.shape)}"
            )
        return y.float()

    def _autocast(
        self, precision: torch.dtype, function: Callable[[Tensor], Any], x: Tensor
    ) -> Any:
        if precision == torch.float32:
            with torch.autocast(self.device.type, enabled=False):
                return function(x)
        with torch.autocast(self.device.type, dtype=precision):
            return function(x)

    # ---- what fits -------------------------------------------------------------------------

    def _side(self, height: int, width: int, precision: torch.dtype) -> int | None:
        """The side of the tiles for a picture; None: whole."""
        if self.tile is None:
            return None
        smallest = smallest_tile(self.overlap, self.step)
        if self.tile != "auto":
            side = max(smallest, int(min(self.tile, self._side_limit)))
            return side if max(height, width) > side else None
        if max(height, width) <= self._side_limit and self._fits(height * width, precision):
            return None
        free = memory.available_bytes(self.device)
        side = LARGEST_TILE
        if free is not None:
            side = min(side, self._estimate(precision).side(free, self.step))
        side = max(smallest, int(min(side, self._side_limit)))
        return side if max(height, width) > side else None

    def _images(self, count: int, image: Tensor, precision: torch.dtype) -> int:
        """How many pictures of a size to restore at once."""
        count = min(count, self._image_limit)
        while count > 1 and not self._fits(count * image.shape[2] * image.shape[3], precision):
            count = (count + 1) // 2
        return count

    def _fits(self, pixels: int, precision: torch.dtype) -> bool:
        if pixels <= UNASKED_PIXELS:
            return True
        free = memory.available_bytes(self.device)
        return free is None or self._estimate(precision).bytes(pixels) <= free

    def _estimate(self, precision: torch.dtype) -> memory.Estimate:
        if precision not in self._estimates:
            # Computed before: an encoder that is built on first use must not be built of tensors
            # without memory.
            prior = self.encode_prior(torch.zeros(1, 3, 32, 32))

            def network(x: Tensor) -> Tensor:
                call = self.model if prior is None else lambda x: self.model(x, prior)
                y: Tensor = self._autocast(precision, call, x)
                return y.float()

            self._estimates[precision] = memory.estimate(network, self.device)
        return self._estimates[precision]

    def _halve(self, height: int, width: int, side: int | None, count: int, failure: str) -> None:
        """Makes the next attempt smaller, and all later ones."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.report = replace(self.report, halvings=self.report.halvings + 1)
        if count > 1:
            self._image_limit = count // 2
            return
        now = side or max(height, width)
        smallest = smallest_tile(self.overlap, self.step)
        if self.tile is None:
            raise MemoryError(
                f"Restorer: {width} x {height} pixels do not fit into the memory of {self.device}; "
                f"tile='auto' cuts the picture ({failure})"
            )
        if now <= smallest:
            raise MemoryError(
                f"Restorer: not even tiles of {now} pixels fit into the memory of {self.device}; "
                f"use another device or a smaller network ({failure})"
            )
        self._side_limit = max(smallest, now // 2)


def store(restored: Tensor, out: Tensor) -> None:
    """Writes float32 into a picture's dtype and device, clamped and rounded to its levels."""
    # A few rows at a time stay in the processor's cache; a GPU takes them all at once.
    rows = max(1, BLOCK // out.shape[3]) if restored.device.type == "cpu" else out.shape[2]
    for part, target in zip(restored.split(rows, 2), out.split(rows, 2), strict=True):
        part = part.clamp(0, 1)
        if not out.is_floating_point():
            part.mul_(torch.iinfo(out.dtype).max).round_()
        if out.dtype == torch.uint8:
            part = part.to(torch.uint8)  # before it travels
        target.copy_(part.to(out.device))


def fast_at_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 has instructions of its own there, so that it is faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Measured at 480 × 720: with AVX512_BF16 the networks are 1.3 to 1.8 times as fast as in
        # float32. Without it PyTorch emulates: 2 times slower with AVX-512, 6 to 13 with AVX2.
        known: Callable[[], dict[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
        can = known() if known is not None else {}
        return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
    return False


def _reduced(image: Tensor, most_pixels: int) -> Tensor:
    """A picture averaged over k × k pixels so that it has at most ``most_pixels``."""
    height, width = image.shape[2:]
    k = math.ceil(math.sqrt(height * width / most_pixels))
    if k <= 1:
        return image
    while math.ceil(height / min(k, height)) * math.ceil(width / min(k, width)) > most_pixels:
        k += 1 + k // 4
    levels = 1 if image.is_floating_point() else torch.iinfo(image.dtype).max
    window = min(k, height), min(k, width)
    # A few rows at a time: in float32 a large picture takes much memory.
    rows = [
        F.avg_pool2d(part.to(torch.float32), window, ceil_mode=True)
        for part in image.split(window[0] * 64, dim=2)
    ]
    return torch.cat(rows, dim=2).div_(levels)


def _finite(values: Tensor) -> bool:
    # The sum needs no memory, and is finite unless a value is not or the sum overflows.
    return bool(values.sum().isfinite()) or bool(values.isfinite().all())


def _out_of_memory(error: BaseException) -> str:
    """The first line of an error that says that memory ran out, else nothing."""
    words = str(error) or type(error).__name__
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if known or "can't allocate memory" in words or "out of memory" in words:
        return words.splitlines()[0]
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
