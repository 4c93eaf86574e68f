"""Convolutions of the frozen form: by Winograd's algorithm, as products of windows, or oneDNN's.

Which is fastest depends on the image, so that the forms of a weight are made when the first image
wants them. Images are dense and channels-last.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.models._frozen_windows import PhaseProducts, WindowProduct
from clipweather_fast.models._frozen_winograd import Kind, Winograd

__all__ = ["FrozenConv", "FrozenUp"]

#: With fewer input channels Winograd's transforms cost what its products save.
ENOUGH_CHANNELS = 16
#: Up to so many pixels of the coarse image oneDNN spends its time on rearranging the weight.
FEW_PIXELS = 128

Form = TypeVar("Form")


class _Forms:
    """A layer's weight, and what was made of it for the images that came."""

    def __init__(self) -> None:
        self.made: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Form]) -> Form:
        """The form under a key, from the first call on that wants it."""
        form: Form | None = self.made.get(key)
        if form is None:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
                form = self.made[key] = make()
        return form


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
        self.forms = _Forms()

    def __call__(self, image: Tensor, activation: str = "none") -> Tensor:
        """(N, C, H, W) to (N, C', H', W'), through ``"none"`` or ``"relu"``."""
        image = image.to(self.dtype).contiguous(memory_format=torch.channels_last)
        winograd = self._winograd(image)
        if winograd is not None:
            return winograd(image, relu=activation == "relu")
        if self._few_windows(image) and activation == "none":
            product = self.forms.get("windows", lambda: WindowProduct(self.weight, self.bias))
            return product(image)
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
        if kind is None or not _pays(image):
            return None
        tile = _tile(image) if kind == Kind.SAME else 2
        return self.forms.get(tile, lambda: Winograd(self.weight, self.bias, kind, tile))

    def _few_windows(self, image: Tensor) -> bool:
        n, _, h, w = image.shape
        return self.kind == Kind.DOWN and n * ((h + 1) // 2) * ((w + 1) // 2) <= FEW_PIXELS


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
        self.forms = _Forms()

    def __call__(self, image: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C', 2H, 2W)."""
        if _pays(image):
            return self.forms.get(2, lambda: Winograd(self.weight, self.bias, Kind.UP, 2))(image)
        if image[:, 0].numel() <= FEW_PIXELS:
            return self.forms.get("phases", lambda: PhaseProducts(self.weight, self.bias))(image)
        return F.conv_transpose2d(image, self.weight, self.bias, self.stride, self.padding)


def _kind(layer: nn.Conv2d) -> Kind | None:
    """What a convolution is to Winograd's algorithm; None: nothing."""
    padded = layer.padding == (1, 1) and layer.dilation == (1, 1) and layer.groups == 1
    if layer.kernel_size != (3, 3) or not padded:
        return None
    return {(1, 1): Kind.SAME, (2, 2): Kind.DOWN}.get(cast(tuple[int, int], layer.stride))


def _pays(image: Tensor) -> bool:
    return image.dtype == torch.float32 and image.shape[1] >= ENOUGH_CHANNELS


def _tile(image: Tensor) -> int:
    """m of F(m×m, 3×3): the larger saves products, and its weight is more to read.

    Reading a weight takes about as long as multiplying ten tiles with it.
    """
    n, _, h, w = image.shape

    def cost(m: int) -> int:
        return (m + 2) ** 2 * (n * -(-h // m) * -(-w // m) + 10)

    return min((2, 4), key=cost)
