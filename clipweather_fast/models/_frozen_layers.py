"""Layers in the form a finished network computes with: packed weights, one precision, no autograd.

Tokens (N, L, C) and images (N, C, H, W) are dense and channels-last. ``dtype`` is what the layers
multiply in, float32 or bfloat16; the residual stream of the blocks stays in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clipweather_fast.models._frozen_panels import PanelLinear
from clipweather_fast.ops import _native
from clipweather_fast.ops.reduced_kv_attention import native_cpu

__all__ = ["FrozenLinear", "FrozenNorm", "attended", "residual_norm"]

NOTHING = (0, 0, 0.0)


class FrozenLinear:
    """A Linear layer whose weight is packed, for our own product or for oneDNN's.

    Against PyTorch's own call, which packs the weight anew each time, oneDNN's is 1.05 to 1.25
    times as fast in float32 and bfloat16 alike. Ours is as fast as that over many rows, or a little
    faster, and up to 1.8 times over few, which leave oneDNN waiting for the weight. With a matrix
    unit oneDNN's is up to 1.3 times as fast over thousands of rows of 128 channels and more.

    Args:
        weight: (out, in).
        bias: (out), or None.
        dtype: what it multiplies in.
        activation: of its result: ``"none"``, ``"gelu"`` (by the error function) or ``"swish"``,
            x·σ(x).
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, activation: str = "none"
    ) -> None:
        weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.out_features = weight.shape[0]
        self.activation = activation
        self.own: PanelLinear | None = None
        if PanelLinear.suits(weight):
            self.own = PanelLinear(weight, bias if bias is None else bias.detach(), activation)
        else:
            self.packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    @classmethod
    def of(cls, layer: nn.Linear, dtype: torch.dtype) -> FrozenLinear:
        """The frozen form of a layer."""
        return cls(layer.weight, layer.bias, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """(…, in) to (…, out)."""
        if self.own is not None:
            return self.own(x)
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.packed, self.bias, self.activation, [], "none"
        )
        return y


class FrozenNorm:
    """A layer normalisation's parameters in float32."""

    def __init__(self, layer: nn.LayerNorm) -> None:
        self.weight = layer.weight.detach().float().contiguous()
        self.bias = layer.bias.detach().float().contiguous()
        self.native = (self.weight.data_ptr(), self.bias.data_ptr(), layer.eps)


def residual_norm(
    branch: Tensor,
    residual: Tensor | None,
    after: FrozenNorm | None,
    dtype: torch.dtype,
    *,
    before: FrozenNorm | None = None,
    keep: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    r"""What lies between two layers of a block, in one pass over the tokens.

    .. math::
        t &= \mathrm{residual} + \mathrm{LN}_{before}(\mathrm{branch}) \\
        h &= \mathrm{LN}_{after}(t)

    Args:
        branch: (N, L, C), dense, float32 or bfloat16.
        residual: (N, L, C) float32, dense; it is overwritten with t. None: zero.
        after, before: None: there is no such normalisation.
        dtype: of h.
        keep: whether t is wanted.

    Returns:
        t in float32 and h, or None where they are not wanted or not defined.
    """
    total: Tensor | None = None
    if keep:
        total = residual
        if total is None:
            total = torch.empty(branch.shape, dtype=torch.float32)
    normed = None if after is None else torch.empty(branch.shape, dtype=dtype)
    channels = branch.shape[-1]
    _native.core().residual_norm_cpu(
        branch.data_ptr(),
        _native.DTYPE_CODES[branch.dtype],
        _native.address(residual),
        NOTHING if before is None else before.native,
        NOTHING if after is None else after.native,
        _native.address(total),
        _native.address(normed),
        _native.DTYPE_CODES[dtype],
        branch.numel() // channels,
        channels,
        torch.get_num_threads(),
    )
    return total, normed


def attended(q: Tensor, kv: Tensor, scale: float | None = None) -> Tensor:
    """The operator reduced_kv_attention, called directly.

    Args:
        q: queries (N, Lq, heads, d).
        kv: keys, then values (N, Lk, 2 · heads, d).
        scale: of the scores; None: d^-1/2.

    Returns:
        Tokens (N, Lq, heads · d).
    """
    n, length, heads, d = q.shape
    k, v = kv[:, :, :heads], kv[:, :, heads:]
    out = torch.empty(q.shape, dtype=q.dtype)
    native_cpu.forward(q, k, v, d**-0.5 if scale is None else scale, out, None)
    return out.view(n, length, heads * d)
