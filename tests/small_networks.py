"""Networks for the tests: small ones, disturbed ones, and what they take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipweather_fast.models import ClipWeatherConfig, RestorationNetwork, TransWeatherConfig
from clipweather_fast.models.registry import ARCHITECTURES

#: Every kind of layer, as few channels as the fused attention's heads allow.
SMALL = {
    "dims": (8, 16, 16, 32),
    "depths": (1, 2, 1, 1),
    "heads": (1, 2, 2, 4),
    "intra_heads": (1, 2, 2),
    "decoder_tail": (8, 4),
    "drop_path_rate": 0.0,
}
SMALL_CLIP = ClipWeatherConfig.from_dict(
    {
        **SMALL,
        "prior_encoder": "clip:fake",
        "prior_dim": 12,
        "prior_width": 24,
        "prior_tokens": 5,
        "prior_blocks": 2,
        "gamma_init": 0.5,
    }
)
SMALL_TRANSWEATHER = TransWeatherConfig.from_dict(SMALL)


class FakePriorEncoder(nn.Module):
    """Mean colours through a linear layer, as long as its weights' name is."""

    def __init__(self, kind: str, weights: str | None, dim: int) -> None:
        super().__init__()
        self.kind, self.weights, self.dim = kind, weights, dim
        self.linear = nn.Linear(3, dim)
        if not kind.startswith("convolutional"):
            self.requires_grad_(False)

    def forward(self, image: Tensor) -> Tensor:
        y: Tensor = self.linear(image.mean((2, 3)).to(self.linear.weight.dtype))
        return y


def small(architecture: str = "ClipWeather", **changes: Any) -> RestorationNetwork:
    """A small network in eval mode, every parameter disturbed; ``changes`` are of its fields."""
    config = SMALL_CLIP if architecture == "ClipWeather" else SMALL_TRANSWEATHER
    make: Any = ARCHITECTURES[architecture]
    torch.manual_seed(2)
    return disturbed(make(config.replace(**changes))).eval()


def disturbed(network: RestorationNetwork) -> RestorationNetwork:
    """The network with noise on every parameter, so that no zero or one hides a mistake."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in network.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise.to(parameter.dtype), alpha=0.03)
    return network


def prior_of(network: RestorationNetwork, n: int = 1) -> Tensor | None:
    """A random prior for ``n`` pictures, or None for a network without."""
    dim = getattr(network.config, "prior_dim", 0)
    if not dim or not getattr(network.config, "uses_prior", False):
        return None
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(6))


def photograph(height: int, width: int, n: int = 1) -> Tensor:
    """A seeded picture (N, 3, H, W) in [0, 1]."""
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(8))
