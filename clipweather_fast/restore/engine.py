"""Runs a network over pictures: whole or in tiles, in the precision and the memory there is."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from clipweather_fast._autocast import no_autocast
from clipweather_fast.modules import EfficientAttention
from clipweather_fast.ops import _native
from clipweather_fast.restore import memory
from clipweather_fast.restore.samples import averaged, finite, prepared, store, store_finite
from clipweather_fast.restore.tiles import Span, restore_in_tiles, smallest_tile, spans

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
#: Steps of the tiles for a network that names no ``size_multiple``.
USUAL_MULTIPLE = 64


NOT_FINITE = "Restorer: the network gives NaN or infinity even in float32: bad weights?"


class _NotFinite(Exception):
    """A tile in low precision."""


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
        overlap: pixels that tiles share; where their attention is joined, ``size_multiple`` more.
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
        # Whether tiles' attention can be joined; False too once there was no memory for it.
        self._joins = any(isinstance(module, EfficientAttention) for module in model.modules())
        # What tiles share to be given each other's rims; None: the model does not ask for them, or
        # asks within passes that only it knows of, such as of mirrored pictures.
        self._shares: int | None = getattr(model, "shared_by_tiles", None)
        self.report = Report(str(device))
        self._encodes = hasattr(model, "encode_prior")
        # Whether the model reads pictures of any layout as fast, in its own passes.
        self._any_layout = (
            device.type == "cpu" and not compile and bool(getattr(model, "any_layout", False))
        )
        self._compiles = compile
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
            side, joint = self._side(image.shape[2], image.shape[3], precision)
            count = 1 if side else self._images(len(pending), image, precision)
            self.report = replace(self.report, dtype=_name(precision), tile=side)
            failure = ""
            try:
                with torch.inference_mode():
                    if side:
                        self._in_tiles(*pending[0], side, joint, precision, prior)
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
            small = prepared(averaged(image, PRIOR_PIXELS), self.device)
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
        images = [prepared(image, self.device, any_layout=self._any_layout) for image, _ in pairs]
        batch = images[0] if len(images) == 1 else torch.cat(images)
        del images

        def stored(y: Tensor) -> bool:
            parts = zip(y.split(1), pairs, strict=True)
            return all(store_finite(part, out) for part, (_, out) in parts)

        self._pass(batch, precision, prior, stored)

    def _in_tiles(
        self,
        image: Tensor,
        out: Tensor,
        side: int,
        joint: bool,
        precision: torch.dtype,
        prior: Tensor | None,
    ) -> None:
        if prior is None:
            prior = self.encode_prior(image)
        rows, columns = (
            spans(length, side, self._shared(joint), self.step) for length in image.shape[2:]
        )

        def separate(tile: Tensor) -> Tensor:
            return self._pass(prepared(tile, self.device), precision, prior)

        if not joint:
            restore_in_tiles(image, out, rows, columns, separate, store)
            return
        try:
            tiles = self._joint(image, rows, columns, precision, prior)
            restore_in_tiles(image, out, rows, columns, lambda _: next(tiles), store)
        except _NotFinite:
            # What one tile gives, all attend to: all begin again.
            self._warn_of_precision(precision)
            tiles = self._joint(image, rows, columns, torch.float32, prior)
            restore_in_tiles(image, out, rows, columns, lambda _: next(tiles), store)

    def _joint(
        self,
        image: Tensor,
        rows: list[Span],
        columns: list[Span],
        precision: torch.dtype,
        prior: Tensor | None,
    ) -> Iterator[Tensor]:
        """The restored tiles, row by row, float32 and finite; their attention sees the picture."""
        from clipweather_fast.restore.joint_tiles import JointTiles

        def network(row: Span, column: Span) -> Tensor:
            # Not the compiled network: its attention cannot wait for other tiles.
            x = prepared(image[:, :, row.begin : row.end, column.begin : column.end], self.device)
            y: Tensor = self.model(x) if prior is None else self.model(x, prior)
            return self._checked(x, y)

        least = int(getattr(self.model, "minimum_size", 1))
        around = partial(self._precision_context, precision)
        tiles = JointTiles(
            rows, columns, self.step, least, network, around, rims=self._shares is not None
        )
        for y in tiles.results():
            self.report = replace(self.report, passes=self.report.passes + 1)
            if not finite(y):
                if precision != torch.float32:
                    raise _NotFinite
                raise ArithmeticError(NOT_FINITE)
            yield y

    def _pass(
        self,
        x: Tensor,
        precision: torch.dtype,
        prior: Tensor | None,
        accepts: Callable[[Tensor], bool] = finite,
    ) -> Tensor:
        """(N, 3, h, w) to the same, float32 and finite; not yet clamped.

        ``accepts`` says whether a result is finite, and may take it if it is.
        """
        y = self._network(x, precision, prior)
        accepted = accepts(y)
        if not accepted and precision != torch.float32:
            self._warn_of_precision(precision)
            y = self._network(x, torch.float32, prior)
            accepted = accepts(y)
        if not accepted:
            raise ArithmeticError(NOT_FINITE)
        return y

    def _warn_of_precision(self, precision: torch.dtype) -> None:
        """Says, and counts, that a pass is repeated in float32."""
        warnings.warn(
            f"the network gave values that are not finite in {_name(precision)}; the result "
            "was computed again in float32. dtype='float32' avoids the loss of time",
            PrecisionWarning,
            stacklevel=3,
        )
        self.report = replace(self.report, retries=self.report.retries + 1)

    def _network(self, x: Tensor, precision: torch.dtype, prior: Tensor | None) -> Tensor:
        def call(x: Tensor) -> Tensor:
            own = self.model.encode_prior(x) if self._encodes and prior is None else prior
            y: Tensor = self._call(x) if own is None else self._call(x, own)
            return y

        self.report = replace(self.report, passes=self.report.passes + 1)
        return self._checked(x, self._autocast(precision, call, x))

    def _checked(self, x: Tensor, y: Tensor) -> Tensor:
        if y.shape != x.shape:
            raise ValueError(
                f"Restorer: the network must give {tuple(x.shape)}, it gave {tuple(y.shape)}"
            )
        return y.float()

    def _autocast(
        self, precision: torch.dtype, function: Callable[[Tensor], Any], x: Tensor
    ) -> Any:
        with self._precision_context(precision):
            return function(x)

    def _precision_context(self, precision: torch.dtype) -> AbstractContextManager[object]:
        if precision == torch.float32:
            return no_autocast(self.device.type)
        return torch.autocast(self.device.type, dtype=precision)

    # ---- what fits -------------------------------------------------------------------------

    def _side(self, height: int, width: int, precision: torch.dtype) -> tuple[int | None, bool]:
        """The side of the tiles for a picture (None: whole), and whether they are joined."""
        if self.tile is None:
            return None, False
        longer, joint = max(height, width), self._joins
        side: float
        if self.tile != "auto":
            side = self.tile
        elif longer <= self._side_limit and self._fits(height * width, precision):
            return None, False
        else:
            side = LARGEST_TILE
            free = memory.available_bytes(self.device)
            if free is not None:
                estimate = self._estimate(precision)
                joined = self._joint_side(estimate, free, height * width) if joint else None
                joint = joined is not None
                side = min(side, joined or estimate.side(free, self.step))
        side = max(self._smallest(joint), int(min(side, self._side_limit)))
        return (side if longer > side else None), joint

    def _shared(self, joint: bool) -> int:
        """Pixels that neighbouring tiles share.

        Joined ones more: their convolutions should see about as far as those of the whole picture.
        """
        return max(self.overlap + self.step, self._shares or 0) if joint else self.overlap

    def _joint_side(self, estimate: memory.Estimate, free: int, pixels: int) -> int | None:
        """The side of joined tiles of a picture; None: memory does not hold what waits."""
        smallest = self._smallest(True)
        side = LARGEST_TILE
        while True:
            # What tiles share waits in each of them.
            covered = (side / max(side - self._shared(True), self.step)) ** 2
            left = free - estimate.paused_bytes(int(pixels * covered))
            fitting = estimate.side(left, self.step)
            if fitting >= side:
                return side
            if side <= smallest:
                return None
            side = max(smallest, min(fitting, side - self.step))

    def _smallest(self, joint: bool) -> int:
        return smallest_tile(self._shared(joint), self.step)

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
            prior = self._any_prior()

            def network(x: Tensor) -> Tensor:
                call = self.model if prior is None else lambda x: self.model(x, prior)
                y: Tensor = self._autocast(precision, call, x)
                return y.float()

            self._estimates[precision] = memory.estimate(
                network, self.device, self.model, frozen=not self._compiles
            )
        return self._estimates[precision]

    def _any_prior(self) -> Tensor | None:
        """Some prior of the right length; None if the network has none."""
        length = getattr(self.model, "prior_length", None)
        if length is not None:
            return torch.zeros(1, length, device=self.device) if length else None
        # Computed before: an encoder that is built on first use must not be built of tensors
        # without memory.
        return self.encode_prior(torch.zeros(1, 3, 32, 32))

    def _halve(self, height: int, width: int, side: int | None, count: int, failure: str) -> None:
        """Makes the next attempt smaller, and all later ones."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.report = replace(self.report, halvings=self.report.halvings + 1)
        if count > 1:
            self._image_limit = count // 2
            return
        now = side or max(height, width)
        smallest = self._smallest(self._joins)
        if self.tile is None:
            raise MemoryError(
                f"Restorer: {width} x {height} pixels do not fit into the memory of {self.device}; "
                f"tile='auto' cuts the picture ({failure})"
            )
        if now <= smallest and self._joins:
            self._joins = False  # tiles that wait for others take memory too
            return
        if now <= smallest:
            raise MemoryError(
                f"Restorer: not even tiles of {now} pixels fit into the memory of {self.device}; "
                f"use another device or a smaller network ({failure})"
            )
        self._side_limit = max(smallest, now // 2)


def fast_at_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 has instructions of its own there that make it faster than float32."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Measured at 480 × 720: with AMD's AVX512_BF16 the networks are 1.3 to 1.8 times as fast as
        # in float32. Without it PyTorch emulates: 2 times slower with AVX-512, 6 to 13 with AVX2.
        return _native.bfloat16_pays()
    return False


def _out_of_memory(error: BaseException) -> str:
    """The first line of an error that says that memory ran out, else nothing."""
    words = str(error) or type(error).__name__
    known = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if known or "can't allocate memory" in words or "out of memory" in words:
        return words.splitlines()[0]
    return ""


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
