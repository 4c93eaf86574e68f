"""Small networks of which it is known what they do to a picture, and real ones of few channels."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Same(nn.Module):
    """Gives back what it gets; counts the calls and remembers what came."""

    size_multiple = 16

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[int, ...]] = []
        self.last: Tensor | None = None
        self.inference = False

    def forward(self, image: Tensor) -> Tensor:
        self.shapes.append(tuple(image.shape))
        self.last, self.inference = image, torch.is_inference_mode_enabled()
        return image


class Local(Same):
    """A blur that looks ``radius`` pixels far, and brightens."""

    def __init__(self, radius: int = 8) -> None:
        super().__init__()
        self.radius = radius

    def forward(self, image: Tensor) -> Tensor:
        image = super().forward(image)
        edges = (self.radius,) * 4
        wide = F.pad(image, edges, mode="replicate")
        return F.avg_pool2d(wide, 2 * self.radius + 1, stride=1) * 0.5 + 0.25


class Global(Same):
    """Gives its prior, the mean of the picture that the prior was computed of."""

    def __init__(self) -> None:
        super().__init__()
        self.priors: list[Tensor] = []
        self.prior_shapes: list[tuple[int, ...]] = []

    def encode_prior(self, image: Tensor) -> Tensor:
        self.prior_shapes.append(tuple(image.shape))
        return image.mean(dim=(2, 3))

    def forward(self, image: Tensor, prior: Tensor | None = None) -> Tensor:
        assert prior is not None
        self.priors.append(prior)
        return super().forward(image) * 0 + prior[..., None, None]


class Greedy(Same):
    """Runs out of memory when it sees more than so many pixels."""

    def __init__(self, most_pixels: int, error: type[Exception] = torch.OutOfMemoryError) -> None:
        super().__init__()
        self.most_pixels, self.error = most_pixels, error

    def forward(self, image: Tensor) -> Tensor:
        image = super().forward(image)
        if image.shape[0] * image.shape[2] * image.shape[3] > self.most_pixels:
            raise self.error("CUDA out of memory. Tried to allocate 20.00 GiB")
        return image


class Overflowing(Same):
    """Its activations overflow everything but float32."""

    def __init__(self, broken: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(3)[..., None, None] * 60000)
        self.broken = broken

    def forward(self, image: Tensor) -> Tensor:
        y = F.conv2d(super().forward(image) + 1, self.weight)
        if self.broken:
            return y * torch.nan
        return (y * 2).float() / 120000 - 1


def tiny_network(**changes: Any) -> nn.Module:
    """A network with every part of the real ones, small enough for tests."""
    from clipweather_fast.models import create_model

    # Untrained, what adds the picture would give back what it gets.
    return create_model("clipweather_tiny", **{"residual_output": False, **changes}).eval()
