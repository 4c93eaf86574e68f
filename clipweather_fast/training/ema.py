"""The moving average of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from clipweather_fast.training.processes import local
from clipweather_fast.training.sections import EmaSection

__all__ = ["Ema"]


class Ema:
    r"""An exponential moving average of a module's parameters, in their dtype and on their device.

    .. math:: a \leftarrow d_t a + (1 - d_t) w, \qquad d_t = \min(d, (1 + t) / (10 + t))

    with :math:`d_t = d` without ``warmup``. A parameter that is spread over processes is averaged
    where its parts are.

    Args:
        module: its parameters are what the average begins with.
        section: decay d and warm-up.
    """

    def __init__(self, module: nn.Module, section: EmaSection) -> None:
        self.section = section
        self.parameters = dict(module.named_parameters())
        self.average = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after step ``step``, counted from 0."""
        decay = self.section.decay
        if self.section.warmup:
            decay = min(decay, (1 + step) / (10 + step))
        average = [local(tensor) for tensor in self.average.values()]
        weights = [local(parameter.detach()) for parameter in self.parameters.values()]
        get_ema_multi_avg_fn(decay)(average, weights, None)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The average in the place of the weights, as long as the block lasts."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for name, parameter in self.parameters.items():
            here, there = local(parameter.detach()), local(self.average[name])
            kept = here.clone()
            here.copy_(there)
            there.copy_(kept)

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Takes the averages of a checkpoint, in the form that :attr:`average` has."""
        for name, tensor in self.average.items():
            tensor.copy_(state[name])
