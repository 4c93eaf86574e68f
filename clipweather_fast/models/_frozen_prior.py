"""The prior encoder that a network uses but does not own."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from threading import Lock
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast._autocast import no_autocast
from clipweather_fast.models._frozen import form_dtype, multiplied_in
from clipweather_fast.models.config import ClipWeatherConfig

if TYPE_CHECKING:
    from clipweather_fast.clip import PriorEncoder

__all__ = ["FrozenPrior", "built_encoder"]

#: Several threads may restore with one network; the first of them builds its encoder.
_building = Lock()


class FrozenPrior:
    """A frozen encoder (CLIP, ImageNet), built from the configuration when a prior is computed.

    There is one on each device that asked, so that the replicas of ``nn.DataParallel`` do not take
    it from one another. Copies of a network share them, since they never change; a pickle holds
    none: what it was built from builds it again.
    """

    def __init__(self, config: ClipWeatherConfig) -> None:
        self.config = config
        self.encoders: list[nn.Module] = []

    def __call__(self, image: Tensor) -> Tensor:
        """The prior (N, prior_dim), computed without gradient.

        In float32, except on the CPU under autocast to bfloat16 and where no gradient is wanted:
        there CLIP's vision transformer multiplies in what the network does, see
        :func:`multiplied_in`.
        """
        encoder, pixels = self._on(image.device), image.float()
        dtype = form_dtype(pixels)
        if torch.is_grad_enabled() and dtype is not None:
            dtype = torch.float32  # what is learnt is learnt from the same prior everywhere
        with torch.no_grad(), no_autocast(image.device.type):
            form = None
            if dtype is not None and len(pixels):
                # Here, so that who needs no CLIP does not import what builds it.
                from clipweather_fast.models._frozen_tower import frozen_tower

                form = frozen_tower(encoder, multiplied_in(dtype))
            if form is None:
                prior: Tensor = encoder(pixels)
            else:
                prior = form(cast("PriorEncoder", encoder).prepared(pixels))
            return prior.to(image.dtype)

    def _on(self, device: torch.device) -> nn.Module:
        found = self._found(device)
        if found is not None:
            return found
        with _building, torch.inference_mode(False):
            found = self._found(device)
            if found is None:
                if self.encoders:
                    found = copy.deepcopy(self.encoders[0]).to(device)
                else:
                    found = built_encoder(self.config).to(device)
                self.encoders.append(found)
            return found

    def _found(self, device: torch.device) -> nn.Module | None:
        for encoder in self.encoders:
            if next(encoder.parameters()).device == device:
                return encoder
        return None

    def __iter__(self) -> Iterator[nn.Module]:
        """Those that were built."""
        return iter(self.encoders)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenPrior:
        return self

    def __reduce__(self) -> tuple[type[FrozenPrior], tuple[ClipWeatherConfig]]:
        return FrozenPrior, (self.config,)


def built_encoder(config: ClipWeatherConfig) -> nn.Module:
    """The prior encoder that a configuration names."""
    from clipweather_fast.clip import build_prior_encoder

    weights = None if config.learns_prior else config.prior_weights
    encoder = build_prior_encoder(config.prior_encoder, weights)
    if encoder.dim != config.prior_dim:
        raise ValueError(
            f"ClipWeather: the vectors of prior_encoder {config.prior_encoder!r} have length "
            f"{encoder.dim}, but prior_dim is {config.prior_dim}"
        )
    return encoder
