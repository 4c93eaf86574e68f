"""The convolutional decoder in its frozen form; counterpart of :mod:`._conv_decoder`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from clipweather_fast.models._conv_decoder import Conv, ConvDecoder, Detail, Residual, Up
from clipweather_fast.models._frozen_convolution import FrozenConv, FrozenUp
from clipweather_fast.modules._joint import joined_rims
from clipweather_fast.ops import _native

__all__ = ["FrozenDecoder", "FrozenTail"]

#: What a residual block's second convolution is multiplied with.
RESIDUAL = 0.1


class FrozenResidual:
    """Counterpart of :class:`Residual`; its factor is in the second convolution."""

    def __init__(self, residual: Residual, dtype: torch.dtype) -> None:
        self.conv1 = FrozenConv(residual.conv1.conv2d, dtype)
        self.conv2 = FrozenConv(residual.conv2.conv2d, dtype, factor=RESIDUAL)

    def __call__(self, x: Tensor, *skip: Tensor) -> Tensor:
        """The result plus ``skip``, written over x."""
        return self.conv2.add_to(x, self.conv1(x, "relu"), *skip)


class FrozenTail:
    """From features at stride 2 to the picture, in one pass: see csrc/inference/picture_tail.h.

    Args:
        dense: the residual block before it, if it is to be part of the pass or before it.
        up: the decoder's last transposed convolution.
        detail: the branch at full resolution, if there is one.
        last: the last convolution, before tanh.
        adds_picture: whether the picture is added to the result; all of it, or, where the last
            convolution has four outputs, as much as the fourth says.
        dtype: what it computes in.
    """

    def __init__(
        self,
        dense: Residual | None,
        up: Up,
        detail: Detail | None,
        last: Conv,
        adds_picture: bool,
        dtype: torch.dtype,
    ) -> None:
        self.adds_picture, self.dtype = adds_picture, dtype
        self.adds = 0 if not adds_picture else last.conv2d.out_channels - 2
        fused = dense is not None and _takes_dense(up, detail, dtype)
        self.dense = None if dense is None or fused else FrozenResidual(dense, dtype)
        # The addresses go to native code: the tensors must live as long as they.
        self.weights = [
            _plain(dense.conv1 if dense is not None and fused else None),
            _plain(dense.conv2 if dense is not None and fused else None, RESIDUAL),
            _plain(up),
            _plain(None if detail is None else detail.conv1),
            _plain(None if detail is None else detail.conv2),
            _plain(last),
        ]
        self.native = [(_native.address(w), _native.address(b)) for w, b in self.weights]
        self.channels = (
            up.conv2d.in_channels,
            up.conv2d.out_channels,
            0 if detail is None else detail.conv1.conv2d.out_channels,
        )

    def __call__(
        self, features: Tensor, picture: Tensor, wanted: tuple[int, int] | None = None
    ) -> Tensor:
        """Features (N, C, H / 2, W / 2) and the picture (N, 3, H, W) to (N, 3, H, W), float32.

        The features are overwritten where the residual block is computed before the pass.
        ``wanted``: rows and columns to compute, from the upper left corner; None: all.
        """
        n, _, height, width = picture.shape
        rows, columns = wanted or (height, width)
        layout = torch.channels_last
        assert features.dtype == self.dtype
        features = features.contiguous(memory_format=layout)
        if self.dense is not None:
            features = self.dense(features)
        picture = picture.contiguous(memory_format=layout)
        y = torch.empty((n, 3, rows, columns), dtype=torch.float32, memory_format=layout)
        _native.core().picture_tail_cpu(
            features.data_ptr(),
            _native.DTYPE_CODES[features.dtype],
            picture.data_ptr(),
            self.native,
            self.adds,
            y.data_ptr(),
            (n, height, width, *self.channels, rows, columns),
            torch.get_num_threads(),
        )
        return y


def _takes_dense(up: Up, detail: Detail | None, dtype: torch.dtype) -> bool:
    """Whether the pass has room for the residual block: see csrc/inference/cpu_matrix_tail.h."""
    c, d = up.conv2d.in_channels, up.conv2d.out_channels
    e = 16 if detail is None else detail.conv1.conv2d.out_channels
    return _native.matrix_unit() and dtype == torch.bfloat16 and (c, d, e) == (16, 8, 16)


def _plain(layer: Conv | Up | None, factor: float = 1.0) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a layer, times a factor, as PyTorch's documentation lays them."""
    if layer is None:
        return None, None
    weight, bias = layer.conv2d.weight.detach(), layer.conv2d.bias
    if bias is not None:
        bias = bias.detach()
    if factor != 1.0:
        weight, bias = weight * factor, None if bias is None else bias * factor
    return weight.contiguous(), None if bias is None else bias.contiguous()


class FrozenDecoder:
    """Counterpart of :meth:`ConvDecoder.features` but its last block and layer, the tail's."""

    def __init__(self, decoder: ConvDecoder, dtype: torch.dtype) -> None:
        ups: Sequence[Up] = (
            decoder.convd32x,
            decoder.convd16x,
            decoder.convd8x,
            decoder.convd4x,
            decoder.convd2x,
        )
        dense = (decoder.dense_4, decoder.dense_3, decoder.dense_2)
        self.ups = [FrozenUp(up.conv2d, dtype) for up in ups]
        self.dense = [FrozenResidual(cast(Residual, d[0]), dtype) for d in dense]

    def __call__(self, stages: list[Tensor], deepest: Tensor) -> Tensor:
        f1, f2, f3, f4 = stages
        x = _fitting(self.ups[0](deepest), f4).add_(f4)
        joined_rims(self, x)
        x = _fitting(self.ups[1](x), f3)
        for dense, skip, up in zip(self.dense, (f3, f2, f1), self.ups[2:], strict=True):
            x = dense(x, skip)
            joined_rims(dense, x)
            x = up(x)
        return x


def _fitting(x: Tensor, skip: Tensor) -> Tensor:
    """``x`` without the row or column that it has beyond ``skip``, dense."""
    if x.shape[2:] != skip.shape[2:]:
        x = x[:, :, : skip.shape[2], : skip.shape[3]]
    return x.contiguous(memory_format=torch.channels_last)
