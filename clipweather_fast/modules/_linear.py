"""How the modules call their Linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules._observation import observed
from clipweather_fast.modules._tokens import as_image, as_tokens
from clipweather_fast.ops import _native
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.ops._direct import dispatcher_idle
from clipweather_fast.ops.dense_conv2d.op import product_pays

__all__ = ["linear"]


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    """``layer(x)`` for tokens (N, L, C), by our products where they are faster than PyTorch's.

    That is float32 on processors with AMX, on many tokens; see csrc/common/cpu_matrix_parts.h. To
    the operator a Linear layer is a convolution of one pixel. Whoever compiles, exports, transforms
    or counts operators, or puts another kind of tensor in, meets PyTorch's layer. Second
    derivatives of ours are refused, as of the operators around it.
    """
    if not (_native.matrix_unit() and _suits(x, layer)):
        y: Tensor = layer(x)
        return y
    weight = layer.weight.view(layer.out_features, layer.in_features, 1, 1)
    image = as_image(x.contiguous(), x.shape[1], 1)
    mixed: Tensor = ops.dense_conv2d(image, weight, layer.bias, backend="cpu")
    return as_tokens(mixed)


def _suits(x: Tensor, layer: nn.Linear) -> bool:
    return (
        x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and requested_backend() in ("auto", "cpu")
        and type(layer) is nn.Linear
        and not observed(layer)
        and "forward" not in vars(layer)
        and dispatcher_idle((x, layer.weight))
        and product_pays(x.shape[0] * x.shape[1], layer.weight)
    )
