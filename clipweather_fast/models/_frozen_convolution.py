"""Convolutions of the frozen form: by Winograd's algorithm, as products of windows, or oneDNN's.

Which is fastest depends on the image, so that the forms of a weight are made when the first image
wants them. Images are dense and channels-last.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.models._frozen_forms import Forms
from clipweather_fast.models._frozen_panels import pairs_pay
from clipweather_fast.models._frozen_windows import PhaseProducts, WindowProduct
from clipweather_fast.models._frozen_winograd import Kind, Winograd

__all__ = ["FrozenConv", "FrozenUp"]

#: With fewer channels Winograd's transforms cost what its products save.
ENOUGH_CHANNELS = {torch.float32: 16, torch.bfloat16: 32}
#: In bfloat16 oneDNN multiplies at twice the rate of float32, in which Winograd's products are
#: computed: those of strided layers, which save less, are faster only where oneDNN is far from its
#: rate, up to so many pixels of the coarse image and products of channels.
SMALL_IMAGE, SMALL_WEIGHT = 384, 128 * 128
#: oneDNN rearranges the weight in each call. Up to so many pixels of the coarse image, and from so
#: many numbers of the weight on, that costs more than windows, or than those of four phases.
FEW_PIXELS, LARGE_WINDOWS, LARGE_PHASES = 128, 1 << 19, 1 << 21
#: A weight is read in about the time in which so many tiles are multiplied with it.
TILES_PER_READ = 10


class FrozenConv:
    """A dense convolution with what follows it: ReLU, or sums with images.

    Args:
        layer: the convolution.
        dtype: what it computes in.
        factor: of its result.
    """

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype, factor: float = 1.0) -> None:
        layout = torch.channels_last
        weight, bias = layer.weight.detach() * factor, layer.bias
        self.weight = weight.to(dtype).contiguous(memory_format=layout)
        self.bias = None if bias is None else (bias.detach() * factor).to(dtype)
        self.geometry: tuple[Any, ...] = (
            list(layer.padding),
            list(layer.stride),
            list(layer.dilation),
            layer.groups,
        )
        self.kind = _kind(layer)
        self.dtype = dtype
        self.forms = Forms()

    def __call__(self, image: Tensor, activation: str = "none") -> Tensor:
        """(N, C, H, W) to (N, C', H', W'), through ``"none"`` or ``"relu"``."""
        image = image.to(self.dtype).contiguous(memory_format=torch.channels_last)
        winograd = self._winograd(image)
        if winograd is not None:
            return winograd(image, relu=activation == "relu")
        if self.kind == Kind.DOWN and _few(image, self.kind, self.weight, LARGE_WINDOWS):
            product = self.forms.get("windows", lambda: WindowProduct(self.weight, self.bias))
            return product(image, activation)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise(
            image, self.weight, self.bias, *self.geometry, activation, [], ""
        )
        return y

    def add_to(self, total: Tensor, image: Tensor, *others: Tensor) -> Tensor:
        """``total`` (N, C', H', W'), to which the convolution of the image was added in place.

        Args:
            others: at most one image more to add.
        """
        winograd = self._winograd(image)
        if winograd is not None:
            return winograd(image, total, *others, out=total)
        y: Tensor = torch.ops.mkldnn._convolution_pointwise_(
            total, image, self.weight, self.bias, *self.geometry, "add", 1.0, None, [], ""
        )
        for other in others:
            y.add_(other)
        return y

    def _winograd(self, image: Tensor) -> Winograd | None:
        kind = self.kind
        if kind is None or not _pays(image, kind, self.weight):
            return None
        tile = _tile(image) if kind == Kind.SAME else 2
        return self.forms.get(tile, lambda: Winograd(self.weight, self.bias, kind, tile))


class FrozenUp:
    """A transposed 4×4 convolution of stride 2 and padding 1.

    Args:
        layer: the convolution.
        dtype: what it computes in.
    """

    def __init__(self, layer: nn.ConvTranspose2d, dtype: torch.dtype) -> None:
        self.weight = layer.weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self.bias = None if layer.bias is None else layer.bias.detach().to(dtype)
        self.stride, self.padding = list(layer.stride), list(cast(tuple[int, ...], layer.padding))
        self.forms = Forms()

    def __call__(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', 2H, 2W)."""
        if _pays(image, Kind.UP, self.weight):
            form = self.forms.get(2, lambda: Winograd(self.weight, self.bias, Kind.UP, 2))
            return form(image.contiguous(memory_format=torch.channels_last))
        if _few(image, Kind.UP, self.weight, LARGE_PHASES):
            return self.forms.get("phases", lambda: PhaseProducts(self.weight, self.bias))(image)
        return F.conv_transpose2d(image, self.weight, self.bias, self.stride, self.padding)


def _kind(layer: nn.Conv2d) -> Kind | None:
    """What a convolution is to Winograd's algorithm; None: nothing."""
    padded = layer.padding == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
    if layer.kernel_size != (3, 3) or not padded:
        return None
    return {(1, 1): Kind.SAME, (2, 2): Kind.DOWN}.get(cast(tuple[int, int], layer.stride))


def _pays(image: Tensor, kind: Kind, weight: Tensor) -> bool:
    """Whether Winograd's algorithm was measured to be the fastest for such a layer and image."""
    if image.shape[1] < ENOUGH_CHANNELS[image.dtype]:
        return False
    if image.dtype == torch.float32:
        return True
    if not pairs_pay():
        return False
    small = _pixels(image, kind) <= SMALL_IMAGE and weight[..., 0, 0].numel() <= SMALL_WEIGHT
    return kind == Kind.SAME or small


def _few(image: Tensor, kind: Kind, weight: Tensor, large: int) -> bool:
    return _pixels(image, kind) <= FEW_PIXELS and weight.numel() >= large


def _pixels(image: Tensor, kind: Kind) -> int:
    """Pixels of the coarse image."""
    n, _, h, w = image.shape
    return n * (-(-h // 2) * -(-w // 2) if kind == Kind.DOWN else h * w)


def _tile(image: Tensor) -> int:
    """m of F(m×m, 3×3): the larger saves products, but has more of a weight to read."""
    n, _, h, w = image.shape

    def cost(m: int) -> int:
        return (m + 2) ** 2 * (n * -(-h // m) * -(-w // m) + TILES_PER_READ)

    return min((2, 4), key=cost)
