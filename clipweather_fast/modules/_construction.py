"""What the constructors share: checks of their arguments and the networks' initial values."""

from __future__ import annotations

import math
from typing import Any

from torch import nn

__all__ = ["depthwise", "initialise", "one_of", "positive", "probability"]


def positive(who: str, **values: Any) -> None:
    """``ValueError`` unless every value is a positive integer."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{who}: {name} must be a positive integer, got {value!r}")


def probability(who: str, **values: Any) -> None:
    """``ValueError`` unless every value lies in [0, 1)."""
    for name, value in values.items():
        if not isinstance(value, (int, float)) or not 0.0 <= value < 1.0:
            raise ValueError(f"{who}: {name} must be a probability in [0, 1), got {value!r}")


def one_of(who: str, name: str, value: Any, allowed: tuple[Any, ...]) -> None:
    """``ValueError`` unless ``value`` is one of ``allowed``."""
    if not any(type(value) is type(one) and value == one for one in allowed):
        words = ", ".join(str(word) for word in allowed)
        raise ValueError(f"{who}: {name} must be one of {words}, got {value!r}")


def depthwise(channels: int) -> nn.Conv2d:
    """A depthwise 3×3 convolution that keeps the image's size."""
    return nn.Conv2d(channels, channels, 3, padding=1, groups=channels)


def initialise(module: nn.Module) -> None:
    """TransWeather's initial values for one layer (used through ``Module.apply``).

    Linear: truncated normal of deviation 0.02. Conv2d: normal of deviation √(2 / fan_out) with
    fan_out = kernel area · output channels / groups. LayerNorm: one. Every bias: zero.
    """
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        fan_out = math.prod(module.kernel_size) * module.out_channels // module.groups
        nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
