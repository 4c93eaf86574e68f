"""Residual distillation as its equations read: PyTorch's own pooling, normalising and L1.

The oracle of the tests, and what the benchmark compares with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["naive_distillation"]


def naive_distillation(
    residuals: Sequence[Tensor],
    places: Sequence[Any],
    weather_features: Sequence[Tensor],
    clean_features: Sequence[Tensor] | None,
    normalize: str = "channels",
    blocks: str = "all",
    intra: str = "resize",
    target: str = "residual",
    match: str | Sequence[nn.Module] = "pool",
) -> Tensor:
    """Eqs. 6 and 7; the arguments are those of ``clipweather_fast.losses``."""
    modules = None if isinstance(match, str) else iter(match)
    total = residuals[0].new_zeros(())
    for stage in range(1, 5):
        here = [i for i, place in enumerate(places) if place.stage == stage]
        if blocks == "last":
            here = [i for i in here if not places[i].intra_patch][-1:]
        losses = []
        for i in here:
            teacher = stage if places[i].intra_patch and intra == "next" else stage - 1
            features = weather_features[teacher]
            if target == "residual":
                assert clean_features is not None
                features = features - clean_features[teacher]
            student = residuals[i] if modules is None else next(modules)(residuals[i])
            channels = min(student.shape[1], features.shape[1])
            a = _pooled(student, (channels, *student.shape[2:]))
            b = _pooled(features, (channels, *student.shape[2:]))
            losses.append(F.l1_loss(_normalized(a, normalize), _normalized(b, normalize)))
        total = total + torch.stack(losses).mean()
    return total


def _pooled(x: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(x.shape[1:]) == size:
        return x
    return F.adaptive_avg_pool3d(x[:, None], size)[:, 0]


def _normalized(x: Tensor, normalize: str) -> Tensor:
    if normalize == "none":
        return x
    if normalize == "channels":
        return F.normalize(x, dim=1, eps=1e-6)
    return F.normalize(x.flatten(1), dim=1, eps=1e-6).view_as(x)
