"""CLIP's vision transformer in its frozen form; counterpart of open_clip's class of that name."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from clipweather_fast.clip.prior import ClipPriorEncoder
from clipweather_fast.models._frozen import form_key
from clipweather_fast.models._frozen_layers import FrozenLinear, FrozenNorm, attended, residual_norm
from clipweather_fast.models._kept_forms import KeptForms
from clipweather_fast.models._recordings import Recordings

__all__ = ["FrozenTower", "frozen_tower"]

#: QuickGELU, x·σ(1.702 x), is x·σ(x) of 1.702 x over 1.702: both factors go into the weights.
QUICK = 1.702
#: How far a form may be from its encoder, of the largest value, the first time they are compared.
AGREEMENT = {torch.float32: 1e-3, torch.bfloat16: 0.1}

_forms: KeptForms[FrozenTower | None] = KeptForms()


def frozen_tower(encoder: nn.Module, dtype: torch.dtype) -> FrozenTower | None:
    """The form of a prior encoder's tower: it computes the prior from prepared pixels. Or None.

    It is built on the first call and follows the weights, as a network's does; see
    :mod:`._frozen`.

    Args:
        encoder: any; only those of CLIP with open_clip's plain vision transformer have a form.
        dtype: what it multiplies in: float32 or bfloat16.
    """
    if not isinstance(encoder, ClipPriorEncoder):
        return None
    key = form_key(encoder, _known_classes())
    if key is None:
        return None
    tower = encoder.visual
    return _forms.get(encoder, dtype, key, tower.parameters, lambda: _agreeing(tower, dtype))


@cache
def _known_classes() -> frozenset[type[nn.Module]]:
    """The classes of an encoder's parts; none if open_clip is not as it was."""
    try:
        from open_clip import transformer as parts
    except ImportError:
        return frozenset()
    names = ("VisionTransformer", "Transformer", "ResidualAttentionBlock", "LayerNorm", "QuickGELU")
    if not all(hasattr(parts, name) for name in names):
        return frozenset()
    own = (getattr(parts, name) for name in names)
    return frozenset(
        {
            ClipPriorEncoder,
            *own,
            *(nn.MultiheadAttention, nn.modules.linear.NonDynamicallyQuantizableLinear),
            *(nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GELU, nn.Identity),
            *(nn.ModuleList, nn.Sequential),
        }
    )


def _agreeing(tower: nn.Module, dtype: torch.dtype) -> FrozenTower | None:
    """The form, if it computes what the encoder does.

    open_clip is not ours and may compute something else under the same names one day: the two are
    compared once.
    """
    try:
        form = FrozenTower(tower, dtype)
        side = form.patch * form.grid
        pixels = torch.linspace(-2, 2, 3 * side * side).view(1, 3, side, side)
        got, expected = form(pixels), tower(pixels)
    except (AttributeError, RuntimeError, TypeError):
        return None
    if got.shape != expected.shape:
        return None
    error = float((got - expected).abs().max())
    return form if error <= AGREEMENT[dtype] * float(expected.abs().max()) else None


class FrozenTower:
    """A vision transformer's image embedding, on the CPU and without gradient.

    Against the modules: the Linear layers are packed, the activation is part of the first of the
    feed-forward pair, what lies between layers is one pass, and of the last block only the class
    token is computed.

    Args:
        tower: open_clip's, of the classes this module knows.
        dtype: what its layers multiply in; the residual stream is float32.
    """

    def __init__(self, tower: Any, dtype: torch.dtype) -> None:
        if tower.attn_pool is not None or tower.pool_type != "tok" or tower.output_tokens:
            raise TypeError("another pooling than the class token")
        self.dtype = dtype
        weight = tower.conv1.weight
        self.patch, self.grid = weight.shape[-1], tower.grid_size[0]
        self.patches = FrozenLinear(weight.flatten(1), tower.conv1.bias, dtype)
        places = tower.positional_embedding.detach().float()
        self.first_token = (tower.class_embedding.detach() + places[0]).clone()
        self.places = places[1:].clone()
        self.before = FrozenNorm(tower.ln_pre) if isinstance(tower.ln_pre, nn.LayerNorm) else None
        blocks = list(tower.transformer.resblocks)
        self.blocks = [FrozenTowerBlock(block, dtype) for block in blocks[:-1]]
        self.last = FrozenClassBlock(blocks[-1], dtype)
        self.after = FrozenNorm(tower.ln_post)
        self.proj = None if tower.proj is None else tower.proj.detach().float().clone()
        self.recordings = Recordings()

    def __call__(self, pixels: Tensor) -> Tensor:
        """Normalised squares (N, 3, size, size), float32, to embeddings (N, dim), float32."""
        return self.recordings(self._computed, pixels)

    def _computed(self, pixels: Tensor) -> Tensor:
        n, patch, grid = pixels.shape[0], self.patch, self.grid
        windows = pixels.reshape(n, 3, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
        rows = windows.reshape(n, grid * grid, -1).to(self.dtype)
        tokens = self.places.new_empty(n, 1 + grid * grid, self.places.shape[1])
        tokens[:, 0] = self.first_token
        torch.add(self.patches(rows), self.places, out=tokens[:, 1:])
        norms = [block.norms[0] for block in (*self.blocks, self.last)]
        x, h = residual_norm(tokens, None, norms[0], self.dtype, before=self.before)
        assert x is not None
        assert h is not None
        for block, following in zip(self.blocks, norms[1:], strict=True):
            h = block(x, h, following)
        token = self.last(x, h, self.after)
        return token if self.proj is None else token @ self.proj


class FrozenTowerBlock:
    """A block of the transformer."""

    def __init__(self, block: Any, dtype: torch.dtype) -> None:
        attention = block.attn
        if attention.bias_k is not None or attention.add_zero_attn:
            raise TypeError("attention with keys of its own")
        if hasattr(block, "ln_1_kv") or not _nothing(block.ls_1, block.ls_2):
            raise TypeError("another block than CLIP's")
        self.dtype, self.heads = dtype, attention.num_heads
        self.norms = FrozenNorm(block.ln_1), FrozenNorm(block.ln_2)
        self._take_projections(attention.in_proj_weight, attention.in_proj_bias)
        self.proj = FrozenLinear.of(attention.out_proj, dtype)
        fc1, gelu, fc2 = block.mlp
        if isinstance(gelu, nn.GELU):
            if gelu.approximate != "none":
                raise TypeError("another activation than GELU and QuickGELU")
            self.fc1 = FrozenLinear(fc1.weight, fc1.bias, dtype, "gelu")
            self.fc2 = FrozenLinear.of(fc2, dtype)
        else:
            self.fc1 = FrozenLinear(fc1.weight * QUICK, fc1.bias * QUICK, dtype, "swish")
            self.fc2 = FrozenLinear(fc2.weight / QUICK, fc2.bias, dtype)

    def _take_projections(self, weight: Tensor, bias: Tensor) -> None:
        self.qkv = FrozenLinear(weight, bias, self.dtype)

    def __call__(self, x: Tensor, h: Tensor, after: FrozenNorm) -> Tensor:
        """The stream x (N, L, C), overwritten, and its norm ``norms[0]``, to the norm ``after``."""
        qkv = self.qkv(h).unflatten(-1, (3 * self.heads, -1))
        h = self.proj(attended(qkv[:, :, : self.heads], qkv[:, :, self.heads :]))
        h = self._normed(h, x, self.norms[1], self.dtype)
        return self._normed(self.fc2(self.fc1(h)), x, after, self.dtype)

    @staticmethod
    def _normed(branch: Tensor, x: Tensor, after: FrozenNorm, dtype: torch.dtype) -> Tensor:
        h = residual_norm(branch, x, after, dtype)[1]
        assert h is not None
        return h


class FrozenClassBlock(FrozenTowerBlock):
    """The last block: only the class token asks, since nothing else of it is used."""

    def _take_projections(self, weight: Tensor, bias: Tensor) -> None:
        width = weight.shape[1]
        self.q = FrozenLinear(weight[:width], bias[:width], self.dtype)
        self.kv = FrozenLinear(weight[width:], bias[width:], self.dtype)

    def __call__(self, x: Tensor, h: Tensor, after: FrozenNorm) -> Tensor:
        """As of every block, but the class token alone, (N, C) in float32."""
        q = self.q(h[:, :1].contiguous()).unflatten(-1, (self.heads, -1))
        kv = self.kv(h).unflatten(-1, (2 * self.heads, -1))
        token = x[:, :1].contiguous()
        h = self._normed(self.proj(attended(q, kv)), token, self.norms[1], self.dtype)
        return self._normed(self.fc2(self.fc1(h)), token, after, torch.float32)[:, 0]


def _nothing(*layers: nn.Module) -> bool:
    return all(isinstance(layer, nn.Identity) for layer in layers)
