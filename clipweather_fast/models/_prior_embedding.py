"""The CLIP weather prior (CWP): tokens of the prior, to which the deepest features attend."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.models._blocks import Block, PatchEmbed, drop_path_rates, layer_norm
from clipweather_fast.models.config import ClipWeatherConfig
from clipweather_fast.modules import ConvMlp
from clipweather_fast.modules._construction import initialise
from clipweather_fast.modules._linear import linear
from clipweather_fast.modules._tokens import as_image, by_heads, keys_and_values

__all__ = ["DECODER_RATES", "PriorEmbedding", "PriorHead"]

#: TransWeather's decoder takes the first of sixteen rates, though it has three blocks.
DECODER_RATES = 16

ACTIVATIONS = {"gelu": nn.GELU, "relu": nn.ReLU, "none": nn.Identity}


class PriorHead(nn.Module):
    """Two linear layers that bring the encoder's vector into the space of the prior's tokens.

    The same vector, compared with CLIP's text features, says which weather it is.
    """

    def __init__(self, config: ClipWeatherConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.prior_dim, config.prior_width)
        self.act = ACTIVATIONS[config.prior_activation]()
        self.fc2 = nn.Linear(config.prior_width, config.prior_width)
        self.apply(initialise)

    def forward(self, prior: Tensor) -> Tensor:
        """Vectors (N, prior_dim) of any precision to (N, prior_width)."""
        projected: Tensor = self.fc2(self.act(self.fc1(prior.to(self.fc1.weight.dtype))))
        return projected


class PriorAttention(nn.Module):
    r"""Every token asks the prior's tokens.

    .. math::
        E &= P + \gamma p \quad (\text{or } [P; \gamma p]) \\
        y &= \mathrm{proj}(\mathrm{softmax}(q(x) \, k(E)^T / \sqrt{d}) \, v(E))

    Parameters: ``tokens`` P (1, M, prior_width), ``gamma`` γ (absent in a network without a prior
    encoder, where E = P), ``q``, ``kv``, ``proj``.

    Reference: eqs. 8-9 of arXiv 2306.09008.
    """

    def __init__(self, config: ClipWeatherConfig) -> None:
        super().__init__()
        dim, width = config.dims[3], config.prior_width
        self.num_heads, self.fuse = config.prior_heads, config.prior_fuse
        self.q = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.kv = nn.Linear(width, 2 * dim, bias=config.qkv_bias)
        self.proj = nn.Linear(dim, dim)
        self.apply(initialise)
        self.tokens = nn.Parameter(torch.empty(1, config.prior_tokens, width))
        if config.prior_token_std > 0:
            nn.init.trunc_normal_(self.tokens, std=config.prior_token_std)
        else:
            nn.init.zeros_(self.tokens)
        if config.uses_prior:
            self.gamma = nn.Parameter(torch.tensor(float(config.gamma_init)))

    def forward(self, x: Tensor, H: int, W: int, prior: Tensor | None) -> Tensor:
        """Tokens (N, H·W, C) to tokens; ``prior`` is p (N, prior_width), or None without one."""
        q = by_heads(linear(x, self.q), self.num_heads)
        k, v = keys_and_values(self._keys_values(x.shape[0], prior), self.num_heads)
        out = ops.reduced_kv_attention(q, k, v)
        y: Tensor = linear(out.flatten(2), self.proj)
        return y

    def _keys_values(self, n: int, prior: Tensor | None) -> Tensor:
        """Keys and values of E, (N, M or M + 1, 2C). The layer is linear, so that the learned
        tokens go through it once and not once per image."""
        own = linear(self.tokens, self.kv)
        if prior is None:
            return own.expand(n, -1, -1)
        shift = (self.gamma * prior).unsqueeze(1)
        if self.fuse == "sum":
            return own + F.linear(shift, self.kv.weight)
        return torch.cat([own.expand(n, -1, -1), self.kv(shift)], 1)


class PriorEmbedding(nn.Module):
    """The deepest features, halved in size and informed by the prior.

    The skeleton, and the names of its parameters, are those of TransWeather's ``Tdec``.
    """

    def __init__(self, config: ClipWeatherConfig) -> None:
        super().__init__()
        dim = config.dims[3]
        rates = drop_path_rates(config.drop_path_rate, max(DECODER_RATES, config.prior_blocks))
        self.patch_embed1 = PatchEmbed(dim, dim, 3, 2)
        self.block1 = nn.ModuleList(
            Block(dim, PriorAttention(config), ConvMlp(dim, config.prior_mlp_ratio), rates[i])
            for i in range(config.prior_blocks)
        )
        self.norm1 = layer_norm(dim)

    def forward(self, image: Tensor, prior: Tensor | None) -> Tensor:
        """Features (N, C, H, W) and p (N, prior_width) to features (N, C, H/2, W/2)."""
        x, height, width = self.patch_embed1(image)
        for block in self.block1:
            x = block(x, height, width, prior)
        return as_image(cast(Tensor, self.norm1(x)), height, width)
