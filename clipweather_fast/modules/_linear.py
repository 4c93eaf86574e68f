"""How the modules call their Linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipweather_fast.modules._observation import untouched
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.ops._direct import dispatcher_idle
from clipweather_fast.ops.dense_conv2d.linear import linear_product
from clipweather_fast.ops.dense_conv2d.op import product_pays

__all__ = ["gains", "linear", "mixed", "takes", "unwatched"]


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)`` for tokens (N, L, C); past the layer where nobody listens to it, see
    :func:`mixed`. Whoever patches or observes it meets PyTorch's layer."""
    if unwatched(layer) and gains(x, layer.weight, layer.bias):
        return linear_product(x, layer.weight, layer.bias)
    y: Tensor = layer(x)
    return y


def mixed(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Tokens (N, L, C) times weight (C', C), plus bias, by our products where they are faster than
    PyTorch's.

    That is float32 on processors with AMX, on more than a few tokens, and on those with AVX-512 on
    a few hundred; see csrc/common/cpu_matrix_parts.h and cpu_packed_products.h. Whoever compiles,
    exports, transforms or counts operators, or puts another kind of tensor in, meets PyTorch's.
    """
    if gains(x, weight, bias):
        return linear_product(x, weight, bias)
    return F.linear(x, weight, bias)


def unwatched(*layers: nn.Module) -> bool:
    """Whether these are PyTorch's own Linear layers, and nobody patches or listens to one."""
    return untouched(*layers) and all(type(layer) is nn.Linear for layer in layers)


def gains(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether our product takes ``x`` (N, L, C) times ``weight`` (C', C), and is faster."""
    return takes(x, weight, bias) and product_pays(x.shape[0] * x.shape[1], weight)


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether our product takes ``x`` (N, L, C) times ``weight`` (C', C), and nobody has a say."""
    return (
        x.is_cpu
        and weight.is_cpu
        and x.dtype == weight.dtype == torch.float32
        and x.dim() == 3
        and x.shape[2] == weight.shape[1]
        and (bias is None or _fits(bias, weight))
        and not torch.is_autocast_enabled("cpu")
        and requested_backend() in ("auto", "cpu")
        and dispatcher_idle((x, weight, bias))
    )


def _fits(bias: Tensor, weight: Tensor) -> bool:
    return bias.is_cpu and bias.dtype == weight.dtype and bias.shape == weight.shape[:1]
