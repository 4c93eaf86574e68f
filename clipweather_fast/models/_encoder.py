"""The encoder: four stages of transformer blocks, linked by an intra-patch path."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from clipweather_fast.models._blocks import (
    Block,
    FeedForward,
    PatchEmbed,
    drop_path_rates,
    layer_norm,
)
from clipweather_fast.models.config import STRIDES, NetworkConfig
from clipweather_fast.modules import EfficientAttention
from clipweather_fast.modules._tokens import as_image

__all__ = ["Encoder", "ResidualPlace"]


@dataclass(frozen=True)
class ResidualPlace:
    """Where a residual map comes from: stage 1 to 4, main or intra-patch block, its size."""

    stage: int
    intra_patch: bool
    channels: int
    stride: int


class Encoder(nn.Module):
    """An image to features at strides 4, 8, 16 and 32; parameters as TransWeather's ``Tenc``.

    In stages 1 to 3 a second, finer look at the embedded image (its next-smaller embedding through
    one block of its own) is added to the next stage's tokens.

    Args:
        config: dims, depths, heads, reductions, rates.
        feed_forward: makes a block's feed-forward layers for a number of channels.
        intra_patch: whether there is an intra-patch path.
    """

    def __init__(
        self, config: NetworkConfig, feed_forward: FeedForward, *, intra_patch: bool = True
    ) -> None:
        super().__init__()
        self.intra_patch = intra_patch
        dims, sources = config.dims, (3, *config.dims)
        rates = drop_path_rates(config.drop_path_rate, sum(config.depths))
        block = partial(_block, feed_forward=feed_forward, qkv_bias=config.qkv_bias)
        first = 0
        for i, (dim, depth) in enumerate(zip(dims, config.depths, strict=True)):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            heads, reduction = config.heads[i], config.reductions[i]
            blocks = [block(dim, heads, reduction, rates[first + j]) for j in range(depth)]
            self.add_module(f"patch_embed{i + 1}", PatchEmbed(sources[i], dim, kernel, stride))
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.add_module(f"norm{i + 1}", layer_norm(dim))
            if i < 3 and intra_patch:
                heads, reduction = config.intra_heads[i], config.intra_reductions[i]
                side = block(dims[i + 1], heads, reduction, rates[first])
                self.add_module(f"mini_patch_embed{i + 1}", PatchEmbed(dim, dims[i + 1], 3, 2))
                self.add_module(f"patch_block{i + 1}", nn.ModuleList([side]))
                self.add_module(f"pnorm{i + 1}", layer_norm(dims[i + 1]))
            first += depth

    @property
    def dtype(self) -> torch.dtype:
        """Of its parameters. (``parameters()`` is empty in the replicas of ``nn.DataParallel``.)"""
        first = cast(PatchEmbed, self.get_submodule("patch_embed1"))
        return first.proj.weight.dtype

    def forward(self, image: Tensor, residuals: list[Tensor] | None = None) -> list[Tensor]:
        """An image (N, 3, H, W) to four feature images, channels-last.

        Args:
            image: normalised, channels-last, its sides at least the configuration's minimum.
            residuals: the blocks' residual maps are added to it, in the order of
                :meth:`residual_places`.
        """
        features: list[Tensor] = []
        side: Tensor | None = None
        for i in range(1, 5):
            x, height, width = self.get_submodule(f"patch_embed{i}")(image)
            if side is not None:
                x = x + side
            embedded = x
            x = self._through(f"block{i}", x, height, width, residuals)
            if i < 4 and self.intra_patch:
                side = self._intra_patch(i, as_image(embedded, height, width), residuals)
            image = as_image(self.get_submodule(f"norm{i}")(x), height, width)
            features.append(image)
        return features

    def _intra_patch(self, i: int, image: Tensor, residuals: list[Tensor] | None) -> Tensor:
        x, height, width = self.get_submodule(f"mini_patch_embed{i}")(image)
        x = self._through(f"patch_block{i}", x, height, width, residuals)
        return cast(Tensor, self.get_submodule(f"pnorm{i}")(x))

    def _through(
        self, name: str, x: Tensor, height: int, width: int, residuals: list[Tensor] | None
    ) -> Tensor:
        for block in cast(nn.ModuleList, self.get_submodule(name)):
            x = block(x, height, width, residuals=residuals)
        return x

    def residual_places(self) -> tuple[ResidualPlace, ...]:
        """What each residual map is, in their order: by stage, main blocks before intra-patch."""
        places = []
        for i, stride in enumerate(STRIDES, start=1):
            for name, intra in ((f"block{i}", False), (f"patch_block{i}", True)):
                if not hasattr(self, name):
                    continue
                for block in cast(nn.ModuleList, self.get_submodule(name)):
                    channels = cast(Block, block).mlp.hidden_features
                    places.append(ResidualPlace(i, intra, channels, stride * (1 + intra)))
        return tuple(places)


def _block(
    dim: int,
    heads: int,
    reduction: int,
    rate: float,
    *,
    feed_forward: FeedForward,
    qkv_bias: bool,
) -> Block:
    attention = EfficientAttention(dim, heads, reduction, qkv_bias)
    return Block(dim, attention, feed_forward(dim), rate)
