"""How the modules call their Linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipweather_fast.modules._observation import observed
from clipweather_fast.ops import _native
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.ops._direct import dispatcher_idle
from clipweather_fast.ops.dense_conv2d.linear import linear_product
from clipweather_fast.ops.dense_conv2d.op import product_pays

__all__ = ["linear", "mixed"]


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)`` for tokens (N, L, C); past the layer where nobody listens to it, see
    :func:`mixed`. Whoever patches or observes it meets PyTorch's layer."""
    plain = type(layer) is nn.Linear and not observed(layer) and "forward" not in vars(layer)
    if plain and _gains(x, layer.weight):
        return linear_product(x, layer.weight, layer.bias)
    y: Tensor = layer(x)
    return y


def mixed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Tokens (N, L, C) times weight (C', C), plus bias, by our products where they are faster than
    PyTorch's.

    That is float32 on processors with AMX, on more than a few tokens; see
    csrc/common/cpu_matrix_parts.h. Whoever compiles, exports, transforms or counts operators, or
    puts another kind of tensor in, meets PyTorch's.
    """
    return linear_product(x, weight, bias) if _gains(x, weight) else F.linear(x, weight, bias)


def _gains(x: Tensor, weight: Tensor) -> bool:
    return (
        _native.matrix_unit()
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 3
        and not torch.is_autocast_enabled("cpu")
        and requested_backend() in ("auto", "cpu")
        and dispatcher_idle((x, weight))
        and product_pays(x.shape[0] * x.shape[1], weight)
    )
