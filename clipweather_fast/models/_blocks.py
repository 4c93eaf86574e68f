"""The pieces that the encoder and both decoders are made of."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from clipweather_fast.modules import SARFFN, ConvMlp
from clipweather_fast.modules._construction import initialise
from clipweather_fast.modules._convolution import convolved
from clipweather_fast.modules._joined_blocks import plus_attention, plus_feed_forward
from clipweather_fast.modules._joint import joined_rims
from clipweather_fast.modules._observation import untouched
from clipweather_fast.modules._tokens import as_image, as_tokens

__all__ = ["Block", "DropPath", "FeedForward", "PatchEmbed", "drop_path_rates", "layer_norm"]

FeedForward = Callable[[int], ConvMlp]


def layer_norm(channels: int) -> nn.LayerNorm:
    """The normalisation of blocks and stages; that of embeddings and keys has eps 1e-5."""
    return nn.LayerNorm(channels, eps=1e-6)


def drop_path_rates(largest: float, blocks: int) -> list[float]:
    """Rates of stochastic depth, rising linearly from 0 to ``largest``."""
    return [largest * i / max(1, blocks - 1) for i in range(blocks)]


class DropPath(nn.Module):
    """Stochastic depth: in training, drops a whole image's branch with probability ``rate``.

    What stays is scaled by 1 / (1 - rate). Reference: arXiv 1603.09382.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """The branch (N, …), or what is left of it."""
        kept = self.kept(x)
        return x if kept is None else x * kept

    def kept(self, x: Tensor) -> Tensor | None:
        """What a branch like ``x`` is multiplied by, (N, 1, …); None: all of it stays."""
        if not self.training or self.rate == 0.0:
            return None
        keep = 1.0 - self.rate
        kept = x.new_empty((x.shape[0],) + (1,) * (x.dim() - 1)).bernoulli_(keep)
        return kept.div_(keep)

    def extra_repr(self) -> str:
        """The rate."""
        return f"{self.rate:.4g}"


class PatchEmbed(nn.Module):
    """A strided convolution, then normalised tokens; parameters ``proj`` and ``norm``."""

    def __init__(self, channels: int, dim: int, kernel_size: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel_size, stride, padding=kernel_size // 2)
        self.norm = nn.LayerNorm(dim)
        self.apply(initialise)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        """An image (N, C, H, W) to tokens (N, H'·W', dim) and H', W' = H, W over the stride."""
        image = convolved(image, self.proj)
        joined_rims(self, image)
        return self.norm(as_tokens(image)), image.shape[2], image.shape[3]


class Block(nn.Module):
    """x + attention(LN(x)), then x + feed-forward(LN(x)).

    Attention and feed-forward are given, so that every kind of block of the networks is this one;
    parameters ``norm1``, ``attn``, ``norm2``, ``mlp``.
    """

    def __init__(self, dim: int, attn: nn.Module, mlp: ConvMlp, drop_path: float) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.attn = attn
        self.drop_path = DropPath(drop_path)
        self.norm2 = layer_norm(dim)
        self.mlp = mlp

    def forward(
        self,
        x: Tensor,
        H: int,
        W: int,
        *prior: Tensor | None,
        residuals: list[Tensor] | None = None,
    ) -> Tensor:
        """Tokens (N, H·W, dim) to tokens.

        Args:
            x: tokens, dense.
            H, W: rows and columns.
            prior: what the attention takes besides.
            residuals: where the feed-forward has a spatially-adaptive residual, it is added here.
        """
        x = self._plus_attention(x, H, W, prior)
        x = self._plus_feed_forward(x, H, W, residuals)
        joined_rims(self, as_image(x, H, W))
        return x

    def _plus_attention(
        self, x: Tensor, H: int, W: int, prior: tuple[Tensor | None, ...]
    ) -> Tensor:
        if not prior and self._may_join():
            whole = plus_attention(x, (H, W), self.norm1, self.attn, self.drop_path.kept)
            if whole is not None:
                return whole
        branch: Tensor = self.drop_path(self.attn(self.norm1(x), H, W, *prior))
        return x + branch

    def _plus_feed_forward(
        self, x: Tensor, H: int, W: int, residuals: list[Tensor] | None
    ) -> Tensor:
        listed = None if not isinstance(self.mlp, SARFFN) else residuals
        if listed is None and self._may_join():
            whole = plus_feed_forward(x, (H, W), self.norm2, self.mlp, self.drop_path.kept)
            if whole is not None:
                return whole
        hidden = self.norm2(x)
        y: Tensor
        if listed is None:
            y = self.mlp(hidden, H, W)
        else:
            y, residual = self.mlp(hidden, H, W, return_residual=True)
            listed.append(residual)
        branch: Tensor = self.drop_path(y)
        return x + branch

    def _may_join(self) -> bool:
        """Whether gradients may be asked for, and nobody has a say in what drops branches."""
        return (
            torch.is_grad_enabled()
            and type(self.drop_path) is DropPath
            and untouched(self.drop_path)
        )
