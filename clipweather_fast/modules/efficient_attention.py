"""Self-attention whose keys and values come from a reduced image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules import _construction
from clipweather_fast.modules._joined_layers import attention
from clipweather_fast.modules._joint import joined, joined_keys
from clipweather_fast.modules._linear import linear
from clipweather_fast.modules._reduction import reduced
from clipweather_fast.modules._tokens import by_heads, check, keys_and_values

__all__ = ["EfficientAttention"]


class EfficientAttention(nn.Module):
    r"""Every token attends to an image reduced ``sr_ratio`` times per side.

    .. math::
        k, v &= \mathrm{kv}(\mathrm{LN}(\mathrm{Conv}_{s \times s, \, \mathrm{stride} \, s}(x))) \\
        y &= \mathrm{proj}(\mathrm{softmax}(q k^T \cdot \mathrm{scale}) \, v)

    The score matrix is never materialised and heads are read where the Linear layers leave them.
    Parameters are named as in PVTv2, SegFormer's first code and TransWeather: ``q``, ``kv``,
    ``sr``, ``norm`` (the last two only where sr_ratio > 1), ``proj``.

    Args:
        dim: channels of the tokens, a multiple of ``num_heads``.
        num_heads: heads of width dim / num_heads.
        sr_ratio: s. Rows and columns that do not fill an s × s window are not attended to.
        qkv_bias: whether ``q`` and ``kv`` have biases.
        qk_scale: the scale of the scores; None: (dim / num_heads)^-1/2.
        attn_drop, proj_drop: dropout of the attention weights (in training this takes PyTorch's
            attention) and of the result.

    Raises:
        ValueError: for an argument outside the above.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        sr_ratio: int = 1,
        qkv_bias: bool = True,
        *,
        qk_scale: float | None = None,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        _construction.positive(who, dim=dim, num_heads=num_heads, sr_ratio=sr_ratio)
        if dim % num_heads:
            raise ValueError(f"{who}: dim must be a multiple of num_heads = {num_heads}, got {dim}")
        _construction.probability(who, attn_drop=attn_drop, proj_drop=proj_drop)
        self.dim, self.num_heads, self.sr_ratio = dim, num_heads, sr_ratio
        self.scale = (dim // num_heads) ** -0.5 if qk_scale is None else qk_scale
        self.q = nn.Linear(dim, dim, bias=qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if sr_ratio > 1:
            self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
            self.norm = nn.LayerNorm(dim)
        self.apply(_construction.initialise)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Tokens (N, H·W, dim) to tokens (N, H·W, dim), dense.

        Raises:
            ValueError: if ``x`` is not (N, H·W, dim), or H or W is less than ``sr_ratio``.
        """
        check(type(self).__name__, x, H, W)
        s = self.sr_ratio
        source = self._reduced(x, H, W)
        dropping = self.training and self.attn_drop.p > 0
        if not (dropping or joined()):
            layers = self.q, self.kv, self.proj
            whole = attention(x, source, layers, self.num_heads, self.scale)
            if whole is not None:
                dropped: Tensor = self.proj_drop(whole)
                return dropped
        # Before the queries: a tile that waits for others' keys holds none.
        kv = joined_keys(self, linear(source, self.kv), H // s, W // s)
        k, v = keys_and_values(kv, self.num_heads)
        q = by_heads(linear(x, self.q), self.num_heads)
        if dropping:
            out = F.scaled_dot_product_attention(
                q.transpose(1, 2),
                k.transpose(1, 2),
                v.transpose(1, 2),
                dropout_p=self.attn_drop.p,
                scale=self.scale,
            ).transpose(1, 2)
        else:
            out = ops.reduced_kv_attention(q, k, v, scale=self.scale)
        projected: Tensor = self.proj_drop(linear(out.flatten(2), self.proj))
        return projected

    def _reduced(self, x: Tensor, height: int, width: int) -> Tensor:
        """The tokens keys and values come from, (N, (H // s)·(W // s), dim)."""
        if self.sr_ratio == 1:
            return x
        if height < self.sr_ratio or width < self.sr_ratio:
            raise ValueError(
                f"{type(self).__name__}: H and W must be at least sr_ratio = {self.sr_ratio}, "
                f"got {height} and {width}; pad the image"
            )
        normed: Tensor = self.norm(reduced(x, height, width, self.sr))
        return normed

    def extra_repr(self) -> str:
        """The constructor's arguments."""
        return f"{self.dim}, {self.num_heads}, sr_ratio={self.sr_ratio}"
