"""How the networks call their dense convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.compiler import is_compiling

from clipweather_fast import ops
from clipweather_fast.modules._observation import observed
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.ops.dense_conv2d.op import weight_bound

__all__ = ["convolved"]


def convolved(x: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d) -> Tensor:
    """``layer(x)`` for an image (N, C, H, W), by our operator where the layer is one it computes
    and nobody else has a say in it.

    Under autocast that is a layer whose weight is larger than both images: it computes in float32,
    and only its result is rounded.

    PyTorch's convolution is no worse a backend than others: a named one, which this operator may
    not have, is not asked of it.
    """
    if requested_backend() not in ("auto", "cpu") or not _on_processor(x) or not _plain(layer):
        y: Tensor = layer(x)
        return y
    geometry = (layer.stride[0], int(layer.padding[0]), type(layer) is nn.ConvTranspose2d)
    computed: Tensor
    if not torch.is_autocast_enabled("cpu"):
        computed = _computed(x, layer, *geometry)
    elif _learns(x) and weight_bound(x, layer.weight, *geometry):
        # Autocast would round a weight that is larger than both images, and then its gradient.
        with torch.autocast("cpu", enabled=False):
            computed = _computed(x.float(), layer, *geometry)
        computed = computed.to(torch.get_autocast_dtype("cpu"))
    else:
        computed = layer(x)
    return computed


def _computed(
    x: Tensor, layer: nn.Conv2d | nn.ConvTranspose2d, stride: int, padding: int, transposed: bool
) -> Tensor:
    computed: Tensor = ops.dense_conv2d(
        x,
        layer.weight,
        layer.bias,
        stride=stride,
        padding=padding,
        transposed=transposed,
        backend="auto",
    )
    return computed


def _learns(x: Tensor) -> bool:
    """Whether gradients may be asked for, of sizes that are numbers."""
    return torch.is_grad_enabled() and not is_compiling()


def _on_processor(x: Tensor) -> bool:
    """Whether there may be a kernel: the operator has them for float32 and float64 on the CPU."""
    wide = x.dtype in (torch.float32, torch.float64)
    return x.device.type == "cpu" and (wide or torch.is_autocast_enabled("cpu"))


def _plain(layer: nn.Conv2d | nn.ConvTranspose2d) -> bool:
    """Square, without groups, dilation or another padding than with zeros, and without hooks."""
    return (
        type(layer) in (nn.Conv2d, nn.ConvTranspose2d)
        and layer.groups == 1
        and len({*layer.kernel_size}) == len({*layer.stride}) == len({*layer.padding}) == 1
        and set(layer.dilation) == {1}
        and set(layer.output_padding) == {0}
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
        and not observed(layer)
    )
