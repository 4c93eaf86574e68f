"""TransWeather: the base network, with the official checkpoints' layout."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.models._blocks import Block, PatchEmbed, drop_path_rates, layer_norm
from clipweather_fast.models._conv_decoder import Conv, ConvDecoder
from clipweather_fast.models._encoder import Encoder
from clipweather_fast.models._prior_embedding import DECODER_RATES
from clipweather_fast.models.config import TransWeatherConfig
from clipweather_fast.models.network import RestorationNetwork
from clipweather_fast.modules import ConvMlp
from clipweather_fast.modules._construction import initialise
from clipweather_fast.modules._tokens import as_image, by_heads, keys_and_values

__all__ = ["TransWeather"]


class QueryAttention(nn.Module):
    """Learned queries, stretched to one per token, ask the tokens.

    Parameters ``task_query`` (1, queries, dim), ``q``, ``kv``, ``proj``.
    """

    def __init__(self, config: TransWeatherConfig) -> None:
        super().__init__()
        dim = config.dims[3]
        self.num_heads = config.query_heads
        self.q = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.kv = nn.Linear(dim, 2 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.apply(initialise)
        self.task_query = nn.Parameter(torch.randn(1, config.queries, dim))

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Tokens (N, H·W, dim) to tokens."""
        length = x.shape[1]
        q = by_heads(self.q(self.task_query), self.num_heads)
        q = q.index_select(1, self._nearest(length)).expand(x.shape[0], -1, -1, -1)
        k, v = keys_and_values(self.kv(x), self.num_heads)
        y: Tensor = self.proj(ops.reduced_kv_attention(q, k, v).flatten(2))
        return y

    def _nearest(self, length: int) -> Tensor:
        """The query that each token gets, as PyTorch's nearest interpolation would choose it."""
        query = self.task_query
        numbers = torch.arange(query.shape[1], device=query.device, dtype=torch.float32)
        return F.interpolate(numbers.view(1, 1, -1), size=length).view(-1).long()


class QueryDecoder(nn.Module):
    """Three blocks of learned queries at stride 64; parameters as ``Tdec``."""

    def __init__(self, config: TransWeatherConfig) -> None:
        super().__init__()
        dim = config.dims[3]
        rates = drop_path_rates(config.drop_path_rate, max(DECODER_RATES, config.query_blocks))
        self.patch_embed1 = PatchEmbed(dim, dim, 3, 2)
        self.block1 = nn.ModuleList(
            Block(dim, QueryAttention(config), ConvMlp(dim, config.query_mlp_ratio), rates[i])
            for i in range(config.query_blocks)
        )
        self.norm1 = layer_norm(dim)

    def forward(self, image: Tensor) -> Tensor:
        """Features (N, C, H, W) to features (N, C, H/2, W/2), sides rounded up."""
        x, height, width = self.patch_embed1(image)
        for block in self.block1:
            x = block(x, height, width)
        return as_image(cast(Tensor, self.norm1(x)), height, width)


class TransWeather(RestorationNetwork):
    """TransWeather (arXiv 2111.14813) on this package's operators.

    The parameters have the official code's names, the two unused layers of its checkpoints
    (``Tenc.mini_patch_embed4``, ``convtail.conv_output``) among them, so its state dicts load as
    they are. Sides that are multiples of 16 and at least 48 are computed as there, without padding;
    all others, which fail there, are padded.

    Args:
        config: see :class:`TransWeatherConfig`; None: the official network.
    """

    config_class = TransWeatherConfig
    config: TransWeatherConfig

    def __init__(self, config: TransWeatherConfig | None = None) -> None:
        config = TransWeatherConfig() if config is None else config
        super().__init__(config, size_multiple=16)
        self.Tenc = Encoder(config, lambda dim: ConvMlp(dim, config.mlp_ratio))
        self.Tenc.mini_patch_embed4 = PatchEmbed(config.dims[0], config.dims[3], 3, 2)
        self.Tdec = QueryDecoder(config)
        self.convtail = ConvDecoder(config.dims, config.decoder_tail)
        self.clean = Conv(config.decoder_tail[1], 3)
        self.active = nn.Tanh()
        self._lay_out_weights()

    @property
    def image_encoder(self) -> Encoder:
        return self.Tenc

    def restored(
        self, picture: Tensor, prior: Tensor | None, residuals: list[Tensor] | None
    ) -> Tensor:
        stages = self.Tenc(picture)
        features = self.convtail.features(stages, self.Tdec(stages[3]))
        y: Tensor = self.active(self.clean(features))
        return y

    def _check_prior(self, prior: Tensor | None, n: int) -> None:
        if prior is not None:
            raise ValueError(f"{type(self).__name__} uses no prior: prior must be None")
