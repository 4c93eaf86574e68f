"""Networks to be timed: values matter only in that none takes a part out of the sums."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from clipweather_fast.models import RestorationNetwork, create_model
from clipweather_fast.models.registry import WEIGHTS

__all__ = ["NETWORKS", "GivenPrior", "network_for_timing"]

#: By what they compute, the least first.
NETWORKS = ("clipweather_tiny", "clipweather_small", "clipweather_base")
#: Deviation of what is added to every parameter of a network without weights.
NOISE = 0.02


class GivenPrior(nn.Module):
    """Stands for a prior encoder whose vector is known: (N, 3, H, W) to the same (N, dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        vector = torch.randn(1, dim, generator=torch.Generator().manual_seed(0))
        self.dim = dim
        self.vector = nn.Parameter(vector, requires_grad=False)

    def forward(self, image: Tensor) -> Tensor:
        return self.vector.expand(image.shape[0], -1)


def network_for_timing(name: str, *, given_prior: bool = False) -> RestorationNetwork:
    """A network in eval mode: with the package's weights, or with seeded random ones.

    A frozen prior encoder has random weights as well; its time does not depend on them. It is
    built here already.

    Args:
        name: one of :func:`clipweather_fast.models.list_models`.
        given_prior: leave out what the frozen encoder takes, as for the frames of a video that
            share a prior.

    Raises:
        ValueError: an unknown name, or ``given_prior`` for a network without a frozen encoder.
        clipweather_fast.clip.EncoderUnavailable: a package for the encoder is missing.
    """
    if name in WEIGHTS and not given_prior:
        return create_model(name, pretrained=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network: Any = create_model(name)
        frozen = getattr(network.config, "uses_prior", False) and not network.config.learns_prior
        if frozen:
            network = create_model(name, prior_weights="random")
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    if given_prior:
        if not frozen:
            raise ValueError(f"network_for_timing: {name} has no frozen prior encoder to leave out")
        network._frozen.encoders.append(GivenPrior(network.config.prior_dim))
    network.eval()
    network.encode_prior(torch.zeros(1, 3, 32, 32))
    found: RestorationNetwork = network
    return found
