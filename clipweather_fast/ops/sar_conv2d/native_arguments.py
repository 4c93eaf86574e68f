"""What the native kernels of both devices are told about the arguments of sar_conv2d."""

from __future__ import annotations

from torch import Tensor

from clipweather_fast.ops._buffers import dense_parameter

__all__ = ["NO_STRIDES", "inputs", "sizes"]

NO_STRIDES = (0, 0, 0, 0)


def inputs(
    dense_x: Tensor | None, logits: Tensor | None, *parameters: Tensor | None
) -> tuple[list[Tensor | None], tuple[int, ...]]:
    """The tensors to hold on to, in the order of SarConv2dInputs, and the strides of the logits."""
    assert dense_x is not None
    packed = (dense_parameter(p, dense_x.dtype) for p in parameters)
    return [dense_x, logits, *packed], NO_STRIDES if logits is None else logits.stride()


def sizes(weight: Tensor | None, static_weight: Tensor | None) -> tuple[int, int]:
    """K (0: depthwise_conv2d) and the kernel size."""
    kernels = 0 if weight is None else weight.shape[0]
    either = static_weight if weight is None else weight
    assert either is not None  # the checks of both ops see to it
    return kernels, either.shape[-1]
