"""The network in training: everything that has parameters, behind one forward pass."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast.losses import residual_distillation
from clipweather_fast.models import RestorationNetwork
from clipweather_fast.models.transweather import TransWeather

__all__ = ["Student"]


class Student(nn.Module):
    """A restoration network, and the projections that distillation may have.

    All terms of the loss that reach parameters outside the network's own forward pass are computed
    here, so that a wrapper which gathers parameters for this pass (DDP, FSDP) sees them used.

    Args:
        network: what is trained.
        distillation: further arguments of :func:`clipweather_fast.losses.residual_distillation`.
        projections: its ``match``; None: pooling.
    """

    def __init__(
        self,
        network: RestorationNetwork,
        distillation: dict[str, Any] | None = None,
        projections: nn.ModuleList | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.distillation = distillation or {}
        self.places = network.residual_places()
        self.projections = projections
        if isinstance(network, TransWeather):
            # Layers that the official checkpoints have and its forward pass has not.
            for unused in (network.Tenc.mini_patch_embed4, network.convtail.conv_output):
                cast(nn.Module, unused).requires_grad_(False)

    def forward(
        self,
        image: Tensor,
        prior: Tensor | None = None,
        features: tuple[list[Tensor], list[Tensor] | None] | None = None,
        project: bool = False,
    ) -> dict[str, Tensor]:
        """Pictures (N, 3, H, W) in [0, 1] to what the loss is made of.

        Args:
            image: pictures with weather.
            prior: of a frozen encoder; None: the network's own, if it has one.
            features: the teacher's maps of the pictures with and without weather, to distil.
            project: also give the projected prior.

        Returns:
            ``restored`` (N, 3, H, W); ``distillation``, a scalar, if there are features;
            ``projected`` (N, prior_width) if asked for.
        """
        network = self.network
        if prior is None:
            prior = network.encode_prior(image)
        found: dict[str, Tensor] = {}
        if features is None:
            y = network(image, prior)
            if self.projections is not None:
                # Layers that are not used yet, which would confuse DDP, on nothing.
                unused = [p(y.new_zeros(1, p.in_channels, 1, 1)).sum() for p in self._layers()]
                y = y + 0.0 * torch.stack(unused).sum()
        else:
            y, residuals = network(image, prior, True)
            match: Any = "pool" if self.projections is None else self._layers()
            found["distillation"] = residual_distillation(
                residuals, self.places, *features, match=match, **self.distillation
            )
        found["restored"] = y
        if project:
            head = cast(nn.Module, network.prior_head)
            found["projected"] = head(cast(Tensor, prior))
        return found

    def _layers(self) -> list[nn.Conv2d]:
        return [cast(nn.Conv2d, layer) for layer in self.projections or ()]
