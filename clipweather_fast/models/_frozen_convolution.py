"""Convolutions of the frozen form: by Winograd's algorithm, directly, of windows, or oneDNN's.

Which is faster depends on the image, so that a weight's forms are made when the first image wants
them. Images are dense and channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.models._frozen_direct import Direct
from clipweather_fast.models._frozen_forms import Forms
from clipweather_fast.models._frozen_windows import Windows
from clipweather_fast.models._frozen_winograd import Kind, Winograd
from clipweather_fast.ops import _native
from clipweather_fast.ops._direct import observer_looks

__all__ = ["FrozenConv", "FrozenUp"]

#: With fewer channels Winograd's transforms cost what its products save.
ENOUGH_CHANNELS = {torch.float32: 16, torch.bfloat16: 32}
#: A matrix unit multiplies so fast that with more tiles of 2 × 2 the transforms cost more than the
#: products they save; with fewer it waits for the weight, which oneDNN lays out anew in each call.
MOST_TILES = 128
#: A weight is read in about the time in which so many tiles are multiplied with it, in float32 by
#: vectors or by a matrix unit.
TILES_PER_READ = {False: 10, True: 30}


class _FrozenLayer:
    """A layer's weight and bias, to be made to what an image asks for."""

    def __init__(
        self,
        layer: nn.Conv2d | nn.ConvTranspose2d,
        dtype: torch.dtype,
        kind: Kind | None,
        factor: float = 1.0,
    ) -> None:
        self.weight, self.dtype, self.kind, self.factor = layer.weight.detach(), dtype, kind, factor
        self.bias = None if layer.bias is None else layer.bias.detach() * factor
        self.forms = Forms()

    def windows(self, image: Tensor) -> Callable[[Tensor], Tensor] | None:
        """The form for an image for which products of windows were measured to be fastest."""
        kind, dtype = self.kind, self.dtype
        if kind is None or not _native.matrix_unit():
            return None
        # Who looks at what a pass allocates means a larger picture, which has no small layers.
        if observer_looks() or not Windows.suits(self.weight, kind, image, dtype):
            return None
        return self.forms.get(
            "windows", lambda: Windows(self.weight * self.factor, self.bias, kind, dtype)
        )

    def own(self, image: Tensor) -> Callable[..., Tensor] | None:
        """The form of this package's that was measured to be fastest for an image, if one was."""
        kind = self.kind
        if kind is None or not _native.matrix_unit() or not Direct.suits(kind, image, self.dtype):
            return self._winograd(image)
        if observer_looks():
            return self._observed(kind)
        return self.forms.get("direct", lambda: Direct(self.weight * self.factor, self.bias, kind))

    def _winograd(self, image: Tensor) -> Callable[..., Tensor] | None:
        channels, kind, dtype = image.shape[1], self.kind, self.dtype
        if kind is None or channels < ENOUGH_CHANNELS[dtype]:
            return None
        bfloat16 = dtype == torch.bfloat16
        if bfloat16 and (channels % 2 or not _native.pairs_pay()):
            return None
        if bfloat16 and _native.matrix_unit() and _tiles(image, kind) > MOST_TILES:
            return None
        if observer_looks():
            return self._observed(kind)
        tile = _tile(image) if kind == Kind.SAME and not bfloat16 else 2
        return self.forms.get(
            tile, lambda: Winograd(self.weight * self.factor, self.bias, kind, tile, dtype)
        )

    def _observed(self, kind: Kind) -> Callable[..., Tensor]:
        return partial(_nothing_computed, kind, self.weight.shape[1 if kind == Kind.UP else 0])

    def onednn(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias as oneDNN takes them."""
        return self.forms.get("oneDNN", self._for_onednn)

    def _for_onednn(self) -> tuple[Tensor, Tensor | None]:
        weight = (self.weight * self.factor).to(self.dtype)
        bias = None if self.bias is None else self.bias.to(self.dtype)
        return weight.contiguous(memory_format=torch.channels_last), bias


class FrozenConv:
    """A dense convolution with what follows it: ReLU, or sums with images.

    Args:
        layer: the convolution.
        dtype: what it computes in.
        factor: of its result.
    """

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, factor: float = 1.0) -> None:
        self.layer, self.dtype = _FrozenLayer(layer, dtype, _kind(layer), factor), dtype
        self.geometry: tuple[Any, ...] = (
            list(layer.padding),
            list(layer.stride),
            list(layer.dilation),
            layer.groups,
        )

    def __call__(self, image: Tensor, activation: str = "none") -> Tensor:
        """(N, C, H, W) to (N, C', H', W'), through ``"none"`` or ``"relu"``."""
        image = image.to(self.dtype).contiguous(memory_format=torch.channels_last)
        windows = self.layer.windows(image) if activation == "none" else None
        if windows is not None:
            return windows(image)
        own = self.layer.own(image)
        if own is not None:
            return own(image, relu=activation == "relu")
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            image, *self.layer.onednn(), *self.geometry, activation, [], ""
        )
        return y

    def add_to(self, total: Tensor, image: Tensor, *others: Tensor) -> Tensor:
        """``total`` (N, C', H', W'), to which the convolution of the image was added in place.

        Args:
            others: at most one image more to add.
        """
        own = self.layer.own(image)
        if own is not None:
            return own(image, total, *others, out=total)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise_(
            total, image, *self.layer.onednn(), *self.geometry, "add", 1.0, None, [], ""
        )
        for other in others:
            y.add_(other)
        return y


class FrozenUp:
    """A transposed 4×4 convolution of stride 2 and padding 1.

    Args:
        layer: the convolution.
        dtype: what it computes in.
    """

    def __init__(self, layer: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        self.layer = _FrozenLayer(layer, dtype, Kind.UP)
        self.stride, self.padding = list(layer.stride), list(cast(tuple[int, ...], layer.padding))

    def __call__(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', 2H, 2W)."""
        windows = self.layer.windows(image)
        if windows is not None:
            return windows(image)
        own = self.layer.own(image)
        if own is not None:
            return own(image.contiguous(memory_format=torch.channels_last))
        return F.conv_transpose2d(image, *self.layer.onednn(), self.stride, self.padding)


def _nothing_computed(
    kind: Kind,
    channels: int,
    x: Tensor,
    *sums: Tensor,
    relu: bool = False,
    out: Tensor | None = None,
) -> Tensor:
    """What a layer allocates, whatever its form, in a pass that is only looked at."""
    return kind.result(x, channels).zero_() if out is None else out


def _kind(layer: nn.Conv2d) -> Kind | None:
    """What a convolution is to Winograd's algorithm; None: nothing."""
    padded = layer.padding == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
    if layer.kernel_size != (3, 3) or not padded:
        return None
    return {(1, 1): Kind.SAME, (2, 2): Kind.DOWN}.get(cast(tuple[int, int], layer.stride))


def _tiles(image: Tensor, kind: Kind) -> int:
    """Of 2 × 2 pixels, on the coarser side."""
    n, _, h, w = image.shape
    side = 4 if kind == Kind.DOWN else 2
    return n * -(-h // side) * -(-w // side)


def _tile(image: Tensor) -> int:
    """m of F(m×m, 3×3): the larger saves products, but has more of a weight to read."""
    n, _, h, w = image.shape
    per_read = TILES_PER_READ[_native.matrix_unit()]

    def cost(m: int) -> int:
        return (m + 2) ** 2 * (n * -(-h // m) * -(-w // m) + per_read)

    return min((2, 4), key=cost)
