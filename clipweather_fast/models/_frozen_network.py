"""A finished network in the form it is fastest in on the CPU: the same mathematics, fewer passes.

Linear layers are packed, weights are cast once, what lies between layers is one pass, and the
residual stream is kept in float32 whatever the layers multiply in. The parts mirror those of
:mod:`._encoder`, :mod:`._prior_embedding`, :mod:`.transweather` and :mod:`._conv_decoder`, and are
held to them by the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast._autocast import no_autocast
from clipweather_fast.models._blocks import Block, PatchEmbed
from clipweather_fast.models._conv_decoder import Detail, Residual
from clipweather_fast.models._encoder import Encoder
from clipweather_fast.models._frozen import precision
from clipweather_fast.models._frozen_convolution import FrozenConv
from clipweather_fast.models._frozen_decoder import FrozenDecoder, FrozenTail
from clipweather_fast.models._frozen_layers import (
    FrozenLinear,
    FrozenNorm,
    attended,
    residual_norm,
)
from clipweather_fast.models._padding import padded_length
from clipweather_fast.models._picture_input import network_input, write_network_input
from clipweather_fast.models._prior_embedding import PriorAttention, PriorEmbedding, PriorHead
from clipweather_fast.models._recordings import Recordings, Unwritten
from clipweather_fast.models.clip_weather import ClipWeather
from clipweather_fast.models.network import RestorationNetwork
from clipweather_fast.models.transweather import QueryAttention, QueryDecoder, TransWeather
from clipweather_fast.modules import SARFFN, ConvMlp, EfficientAttention
from clipweather_fast.modules._joint import joined_keys, joined_rims
from clipweather_fast.modules._tokens import as_image, as_tokens, by_heads
from clipweather_fast.ops import _native
from clipweather_fast.ops._buffers import dense_parameter

__all__ = ["FrozenNetwork"]


class FrozenNetwork:
    """What :meth:`RestorationNetwork.forward` computes, on the CPU and without gradient.

    It refers to the weights, or holds copies, and never to the network itself.

    Args:
        network: a :class:`ClipWeather` or :class:`TransWeather` as this package builds them.
        dtype: what its layers multiply in: float32 or bfloat16.
    """

    def __init__(self, network: RestorationNetwork, dtype: torch.dtype) -> None:
        self.dtype, self.config = dtype, network.config
        self.sides = network.size_multiple, network.minimum_size
        self.encoder = FrozenEncoder(network.image_encoder, dtype)
        self.head: FrozenHead | None = None
        detail: Detail | None = None
        adds_picture = False
        skeleton: PriorEmbedding | QueryDecoder
        if isinstance(network, ClipWeather):
            skeleton, decoder = network.prior_embedding, network.decoder
            last = decoder.conv_output
            adds_picture = bool(network.config.residual_output)
            detail = network.detail if network.config.detail_channels else None
            if network.config.uses_prior:
                self.head = FrozenHead(network.prior_head, dtype)
        else:
            assert isinstance(network, TransWeather)
            skeleton, decoder, last = network.Tdec, network.convtail, network.clean
        self.deepest = FrozenDeepest(skeleton, dtype)
        self.decoder = FrozenDecoder(decoder, dtype)
        dense = cast(Residual, decoder.dense_1[0])
        self.tail = FrozenTail(dense, decoder.convd1x, detail, last, adds_picture, dtype)
        self.recordings = Recordings()
        self._settings = [
            partial(_SETTINGS[type(module)], module)
            for module in network.modules()
            if type(module) in _SETTINGS
        ]

    def restored(self, image: Tensor, prior: Tensor | None) -> Tensor:
        """What the network gives for pictures (N, 3, H, W) in [0, 1] and a prior."""
        height, width = image.shape[2:]
        given = (height, width, *[settings() for settings in self._settings])
        compute = partial(self._computed, (height, width))
        asked = precision()
        if asked == self.dtype:
            return self.recordings(compute, self._input(image), prior, given=given)
        with no_autocast("cpu"):  # it would round what the layers are not to multiply in
            y = self.recordings(compute, self._input(image), prior, given=given)
        return y if asked is None or self.tail.adds_picture else y.to(asked)

    def _input(self, image: Tensor) -> Tensor | Unwritten:
        """The padded and normalised picture, left to be written where it will be read."""
        if image.dtype != torch.float32:
            return network_input(image, *self.sides, torch.float32)
        rows, columns = (padded_length(length, *self.sides) for length in image.shape[2:])
        shape = (image.shape[0], 3, rows, columns)
        return Unwritten(shape, partial(write_network_input, image))

    def _computed(self, wanted: tuple[int, int], picture: Tensor, prior: Tensor | None) -> Tensor:
        stages = self.encoder(picture)
        projected: Tensor | None = None
        if prior is not None:
            assert self.head is not None
            projected = self.head(prior).expand(picture.shape[0], -1)
        deepest = self.deepest(stages[3], projected)
        # What was padded is not computed where nothing looks at it any more.
        y = self.tail(self.decoder(stages, deepest), picture, wanted)
        # Where the picture is added, the result is not rounded.
        return y if self.tail.adds_picture else y.to(self.dtype)


#: What parts look up in their modules whenever they compute, by the modules' classes.
_SETTINGS: dict[type[nn.Module], Callable[[Any], Any]] = {
    EfficientAttention: attrgetter("num_heads", "sr_ratio", "scale"),
    PriorAttention: attrgetter("num_heads", "fuse"),
    QueryAttention: attrgetter("num_heads"),
    SARFFN: attrgetter("arrangement", "sign", "sar.gate", "sar.per_channel"),
}


class FrozenHead:
    """Counterpart of :class:`PriorHead`."""

    def __init__(self, head: PriorHead, dtype: torch.dtype) -> None:
        self.dtype = dtype
        fused = isinstance(head.act, nn.GELU) and head.act.approximate == "none"
        self.act = nn.Identity() if fused else head.act
        weight, bias = head.fc1.weight, head.fc1.bias
        self.fc1 = FrozenLinear(weight, bias, dtype, "gelu" if fused else "none")
        self.fc2 = FrozenLinear.of(head.fc2, dtype)

    def __call__(self, prior: Tensor) -> Tensor:
        """Vectors (N, prior_dim) to (N, prior_width), float32."""
        return self.fc2(self.act(self.fc1(prior.to(self.dtype)))).float()


class FrozenEmbedding:
    """A strided convolution; its normalisation is left to what follows."""

    def __init__(self, embed: PatchEmbed, dtype: torch.dtype) -> None:
        self.proj = FrozenConv(embed.proj, dtype)
        self.norm = FrozenNorm(embed.norm)

    def __call__(self, image: Tensor) -> tuple[Tensor, int, int]:
        image = self.proj(image)
        joined_rims(self, image)
        tokens = as_tokens(image.contiguous(memory_format=torch.channels_last))
        return tokens, image.shape[2], image.shape[3]


class FrozenBlocks:
    """Blocks one after the other and the normalisation behind them."""

    def __init__(self, blocks: nn.ModuleList, last: nn.LayerNorm, dtype: torch.dtype) -> None:
        own = [cast(Block, block) for block in blocks]
        self.dtype = dtype
        self.attentions = [_attention(block.attn, dtype) for block in own]
        self.mlps = [FrozenMlp(block.mlp, dtype) for block in own]
        self.norms = [(FrozenNorm(block.norm1), FrozenNorm(block.norm2)) for block in own]
        self.last = FrozenNorm(last)

    @property
    def first(self) -> FrozenNorm:
        """The normalisation before the blocks."""
        return self.norms[0][0] if self.norms else self.last

    def __call__(self, x: Tensor, h: Tensor, H: int, W: int, *prior: Tensor | None) -> Tensor:
        """The stream x (N, L, C), which is overwritten, and its ``first`` norm, to the ``last``'s.

        Both are of this class's ``dtype`` but x, which is float32.
        """
        following = [norm1 for norm1, _ in self.norms[1:]] + [self.last]
        for attention, mlp, (_, norm2), after in zip(
            self.attentions, self.mlps, self.norms, following, strict=True
        ):
            h = _normed(attention(h, H, W, *prior), x, norm2, self.dtype)
            goes_on = after is not self.last
            h = _normed(mlp(h, H, W), x, after, self.dtype, keep=goes_on)
            joined_rims(self, *(as_image(y, H, W) for y in ((x, h) if goes_on else (h,))))
        return h


def _normed(
    branch: Tensor, x: Tensor, after: FrozenNorm, dtype: torch.dtype, *, keep: bool = True
) -> Tensor:
    """LN(x + branch); x becomes that sum unless it is not to be kept."""
    h = residual_norm(branch, x, after, dtype, keep=keep)[1]
    assert h is not None
    return h


class FrozenEncoder:
    """Counterpart of :class:`Encoder`."""

    def __init__(self, encoder: Encoder, dtype: torch.dtype) -> None:
        self.dtype = dtype
        get = encoder.get_submodule
        stages = range(1, 5)
        self.embeddings = [
            FrozenEmbedding(cast(PatchEmbed, get(f"patch_embed{i}")), dtype) for i in stages
        ]
        self.blocks = [self._blocks(encoder, f"block{i}", f"norm{i}") for i in stages]
        sides = stages[:3] if encoder.intra_patch else ()
        self.side_embeddings = [
            FrozenEmbedding(cast(PatchEmbed, get(f"mini_patch_embed{i}")), dtype) for i in sides
        ]
        self.side_blocks = [self._blocks(encoder, f"patch_block{i}", f"pnorm{i}") for i in sides]

    def _blocks(self, encoder: Encoder, blocks: str, norm: str) -> FrozenBlocks:
        own = cast(nn.ModuleList, encoder.get_submodule(blocks))
        return FrozenBlocks(own, cast(nn.LayerNorm, encoder.get_submodule(norm)), self.dtype)

    def __call__(self, image: Tensor) -> list[Tensor]:
        """As :meth:`Encoder.forward`, features in ``dtype``."""
        features: list[Tensor] = []
        side: Tensor | None = None
        for i, (embedding, blocks) in enumerate(zip(self.embeddings, self.blocks, strict=True)):
            tokens, height, width = embedding(image)
            x, h = residual_norm(tokens, side, blocks.first, self.dtype, before=embedding.norm)
            assert x is not None
            assert h is not None
            if i < len(self.side_blocks):
                side = self._side(i, as_image(x, height, width))
            image = as_image(blocks(x, h, height, width), height, width)
            features.append(image)
        return features

    def _side(self, i: int, embedded: Tensor) -> Tensor:
        """What the intra-patch path adds to the next stage's tokens, float32."""
        embedding, blocks = self.side_embeddings[i], self.side_blocks[i]
        tokens, height, width = embedding(embedded)
        x, h = residual_norm(tokens, None, blocks.first, self.dtype, before=embedding.norm)
        assert x is not None
        assert h is not None
        return blocks(x, h, height, width).float()


class FrozenAttention:
    """Counterpart of :class:`EfficientAttention`."""

    def __init__(self, attention: EfficientAttention, dtype: torch.dtype) -> None:
        self.attention, self.dtype = attention, dtype
        self.q = FrozenLinear.of(attention.q, dtype)
        self.kv = FrozenLinear.of(attention.kv, dtype)
        self.proj = FrozenLinear.of(attention.proj, dtype)
        if attention.sr_ratio > 1:
            # Windows laid out in rows, as `modules._reduction.reduced` lays them.
            weight = attention.sr.weight.permute(0, 2, 3, 1).flatten(1)
            self.sr = FrozenLinear(weight, attention.sr.bias, dtype)
            self.norm = FrozenNorm(attention.norm)

    def __call__(self, h: Tensor, H: int, W: int) -> Tensor:
        heads = self.attention.num_heads
        s = self.attention.sr_ratio
        # As in the module: a tile that waits for others' keys holds no queries.
        kv = joined_keys(self.attention, self.kv(self._reduced(h, H, W)), H // s, W // s)
        q = by_heads(self.q(h), heads)
        return self.proj(attended(q, by_heads(kv, 2 * heads), self.attention.scale))

    def _reduced(self, h: Tensor, height: int, width: int) -> Tensor:
        s = self.attention.sr_ratio
        if s == 1:
            return h
        n, _, channels = h.shape
        rows, columns = height // s, width // s
        cut = h.view(n, height, width, channels)[:, : rows * s, : columns * s]
        windows = cut.view(n, rows, s, columns, s, channels).transpose(2, 3)
        tokens = self.sr(windows.reshape(n, rows * columns, -1))
        normed = residual_norm(tokens, None, self.norm, self.dtype, keep=False)[1]
        assert normed is not None
        return normed


class FrozenPriorAttention:
    """Counterpart of :class:`PriorAttention`; the learned tokens' keys and values are constant."""

    def __init__(self, attention: PriorAttention, dtype: torch.dtype) -> None:
        self.attention, self.dtype = attention, dtype
        self.q = FrozenLinear.of(attention.q, dtype)
        self.proj = FrozenLinear.of(attention.proj, dtype)
        self.own = attention.kv(attention.tokens).detach()
        # Where the prior is added to the tokens, the bias is in their keys and values already.
        bias = None if attention.fuse == "sum" else attention.kv.bias
        self.kv = FrozenLinear(attention.kv.weight, bias, dtype)

    def __call__(self, h: Tensor, H: int, W: int, prior: Tensor | None) -> Tensor:
        heads = self.attention.num_heads
        kv = self._keys_values(h.shape[0], prior).to(self.dtype)
        q = by_heads(self.q(h), heads)
        return self.proj(attended(q, by_heads(kv, 2 * heads)))

    def _keys_values(self, n: int, prior: Tensor | None) -> Tensor:
        """As the module's; the prior's share is multiplied in ``dtype``."""
        attention = self.attention
        own: Tensor = self.own.expand(n, -1, -1)
        if prior is None:
            return own
        shift = self.kv((attention.gamma * prior).unsqueeze(1).to(self.dtype)).float()
        return torch.add(own, shift) if attention.fuse == "sum" else torch.cat([own, shift], 1)


class FrozenQueryAttention:
    """Counterpart of :class:`QueryAttention`; the queries are constant."""

    def __init__(self, attention: QueryAttention, dtype: torch.dtype) -> None:
        self.attention = attention
        self.kv = FrozenLinear.of(attention.kv, dtype)
        self.proj = FrozenLinear.of(attention.proj, dtype)
        self.q = attention.q(attention.task_query).detach().to(dtype)

    def __call__(self, h: Tensor, H: int, W: int) -> Tensor:
        heads = self.attention.num_heads
        q = self.q.index_select(1, self.attention._nearest(h.shape[1]))
        q = by_heads(q.expand(h.shape[0], -1, -1), heads)
        kv = by_heads(self.kv(h), 2 * heads)
        return self.proj(attended(q, kv))


def _attention(attention: nn.Module, dtype: torch.dtype) -> Any:
    if isinstance(attention, EfficientAttention):
        return FrozenAttention(attention, dtype)
    if isinstance(attention, PriorAttention):
        return FrozenPriorAttention(attention, dtype)
    assert isinstance(attention, QueryAttention)
    return FrozenQueryAttention(attention, dtype)


class FrozenMlp:
    """Counterpart of :class:`ConvMlp` and its subclass SARFFN."""

    def __init__(self, mlp: ConvMlp, dtype: torch.dtype) -> None:
        self.mlp = mlp
        self.fc1, self.fc2 = FrozenLinear.of(mlp.fc1, dtype), FrozenLinear.of(mlp.fc2, dtype)
        self.mixer: FrozenMixer | None = None
        if isinstance(mlp, SARFFN) and not mlp._stepwise():
            self.mixer = FrozenMixer(mlp)

    def __call__(self, h: Tensor, H: int, W: int) -> Tensor:
        hidden = self.fc1(h)
        if self.mixer is not None:
            return self.fc2(self.mixer(hidden, H, W))
        return self.fc2(as_tokens(self.mlp._between(as_image(hidden, H, W))))


class FrozenMixer:
    """Everything between the Linear layers of a SARFFN: the operator sar_mixer, called directly."""

    def __init__(self, mlp: SARFFN) -> None:
        parameters, self.gate = mlp.mixer_arguments()
        self.kernels, self.kernel_size = parameters[4].shape[0], parameters[4].shape[-1]
        self.parameters = [dense_parameter(p, torch.float32) for p in parameters]
        self.addresses = [_native.address(p) for p in self.parameters]

    def __call__(self, hidden: Tensor, H: int, W: int) -> Tensor:
        """Tokens (N, H·W, hidden) to tokens."""
        n, _, channels = hidden.shape
        y = torch.empty_like(hidden)
        logits = torch.empty((n, H * W, self.kernels), dtype=hidden.dtype)
        _native.core().sar_mixer_forward_cpu(
            [hidden.data_ptr(), *self.addresses],
            y.data_ptr(),
            0,
            logits.data_ptr(),
            (n, channels, H, W),
            self.kernels,
            self.kernel_size,
            _native.GATES[self.gate],
            _native.DTYPE_CODES[hidden.dtype],
            torch.get_num_threads(),
        )
        return y


class FrozenDeepest:
    """Counterpart of :class:`PriorEmbedding` and :class:`QueryDecoder`, one skeleton."""

    def __init__(self, skeleton: PriorEmbedding | QueryDecoder, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.embedding = FrozenEmbedding(skeleton.patch_embed1, dtype)
        self.blocks = FrozenBlocks(skeleton.block1, skeleton.norm1, dtype)
        self.asks_prior = isinstance(skeleton, PriorEmbedding)

    def __call__(self, image: Tensor, prior: Tensor | None) -> Tensor:
        tokens, height, width = self.embedding(image)
        x, h = residual_norm(
            tokens, None, self.blocks.first, self.dtype, before=self.embedding.norm
        )
        assert x is not None
        assert h is not None
        extra = (prior,) if self.asks_prior else ()
        return as_image(self.blocks(x, h, height, width, *extra), height, width)
