"""Networks with the structure of published ones, written for the tests.

``TransWeatherEncoder`` has the blocks, names, ratios and intra-patch path of the encoder in the
specification; ``OldSegformerLayer`` the nesting Hugging Face used before transformers 5.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DepthwiseLayer(nn.Module):
    def __init__(self, channels: int, kernel: int = 3) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, groups=channels)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        image = x.transpose(1, 2).reshape(x.shape[0], x.shape[2], H, W)
        return self.dwconv(image).flatten(2).transpose(1, 2)


class FeedForward(nn.Module):
    def __init__(
        self,
        dim: int,
        hidden: int,
        act: nn.Module | None = None,
        drop: float = 0.0,
        kernel: int = 3,
    ) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseLayer(hidden, kernel)
        self.act = nn.GELU() if act is None else act
        self.fc2 = nn.Linear(hidden, dim)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = self.drop(self.act(self.dwconv(self.fc1(x), H, W)))
        return self.drop(self.fc2(x))


class ReducedAttention(nn.Module):
    def __init__(
        self, dim: int, heads: int, sr: int, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.dim, self.num_heads, self.sr_ratio = dim, heads, sr
        self.scale = (dim // heads) ** -0.5
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)
        if sr > 1:
            self.sr = nn.Conv2d(dim, dim, sr, stride=sr)
            self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        n, length, dim = x.shape
        q = self.q(x).reshape(n, length, self.num_heads, -1).transpose(1, 2)
        if self.sr_ratio > 1:
            image = x.transpose(1, 2).reshape(n, dim, H, W)
            x = self.norm(self.sr(image).flatten(2).transpose(1, 2))
        k, v = self.kv(x).reshape(n, -1, 2, self.num_heads, dim // self.num_heads).unbind(2)
        scores = q @ k.permute(0, 2, 3, 1) * self.scale
        out = self.attn_drop(scores.softmax(-1)) @ v.transpose(1, 2)
        return self.proj_drop(self.proj(out.transpose(1, 2).reshape(n, length, dim)))


class Block(nn.Module):
    def __init__(self, dim: int, heads: int, sr: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ReducedAttention(dim, heads, sr)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = FeedForward(dim, 2 * dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.attn(self.norm1(x), H, W)
        return x + self.mlp(self.norm2(x), H, W)


class PatchEmbed(nn.Module):
    def __init__(self, channels: int, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, dim, kernel, stride=stride, padding=kernel // 2)
        self.norm = nn.LayerNorm(dim)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        image = self.proj(image)
        return self.norm(image.flatten(2).transpose(1, 2)), image.shape[2], image.shape[3]


class TransWeatherEncoder(nn.Module):
    """Four stages with skips from an intra-patch path; the widths are divided by four."""

    def __init__(self) -> None:
        super().__init__()
        dims, heads, reductions = (16, 32, 80, 128), (1, 2, 4, 4), (4, 2, 2, 1)
        inputs = (3, *dims)
        for i, (dim, head, sr) in enumerate(zip(dims, heads, reductions, strict=True)):
            kernel, stride = (7, 4) if i == 0 else (3, 2)
            self.add_module(f"patch_embed{i + 1}", PatchEmbed(inputs[i], dim, kernel, stride))
            self.add_module(f"block{i + 1}", nn.ModuleList([Block(dim, head, sr)]))
            self.add_module(f"norm{i + 1}", nn.LayerNorm(dim, eps=1e-6))
        for i, (head, sr) in enumerate(((1, 4), (2, 2), (2, 2))):
            self.add_module(f"mini_patch_embed{i + 1}", PatchEmbed(dims[i], dims[i + 1], 3, 2))
            self.add_module(f"patch_block{i + 1}", nn.ModuleList([Block(dims[i + 1], head, sr)]))
            self.add_module(f"pnorm{i + 1}", nn.LayerNorm(dims[i + 1], eps=1e-6))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        outputs: list[Tensor] = []
        side: Tensor | None = None
        for i in range(1, 5):
            x, height, width = self.get_submodule(f"patch_embed{i}")(image)
            x = x if side is None else x + side
            if i < 4:
                side = self._intra_patch(i, self._image(x, height, width))
            x = self._blocks(f"block{i}", x, height, width)
            image = self._image(self.get_submodule(f"norm{i}")(x), height, width)
            outputs.append(image)
        return tuple(outputs)

    def _intra_patch(self, i: int, image: Tensor) -> Tensor:
        u, height, width = self.get_submodule(f"mini_patch_embed{i}")(image)
        u = self._blocks(f"patch_block{i}", u, height, width)
        normed: Tensor = self.get_submodule(f"pnorm{i}")(u)
        return normed

    def _blocks(self, name: str, x: Tensor, height: int, width: int) -> Tensor:
        for _, block in self.get_submodule(name).named_children():
            x = block(x, height, width)
        return x

    @staticmethod
    def _image(x: Tensor, height: int, width: int) -> Tensor:
        return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width).contiguous()


class OldSegformerSelfAttention(nn.Module):
    """query, key, value, sr and layer_norm; returns (out,) or (out, probabilities)."""

    def __init__(self, dim: int, heads: int, sr: int) -> None:
        super().__init__()
        self.num_attention_heads = heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.dropout = nn.Dropout(0.0)
        self.sr_ratio = sr
        if sr > 1:
            self.sr = nn.Conv2d(dim, dim, kernel_size=sr, stride=sr)
            self.layer_norm = nn.LayerNorm(dim)

    def forward(
        self, hidden_states: Tensor, height: int, width: int, output_attentions: bool = False
    ) -> tuple[Tensor, ...]:
        n, _, dim = hidden_states.shape
        q = self._heads(self.query(hidden_states))
        if self.sr_ratio > 1:
            image = hidden_states.permute(0, 2, 1).reshape(n, dim, height, width)
            hidden_states = self.layer_norm(self.sr(image).reshape(n, dim, -1).permute(0, 2, 1))
        k, v = self._heads(self.key(hidden_states)), self._heads(self.value(hidden_states))
        scores = q @ k.transpose(-1, -2) / math.sqrt(dim // self.num_attention_heads)
        probabilities = self.dropout(scores.softmax(-1))
        out = (probabilities @ v).transpose(1, 2).flatten(2)
        return (out, probabilities) if output_attentions else (out,)

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2)


class OldSegformerMixFFN(nn.Module):
    """dense1, dwconv.dwconv, intermediate_act_fn, dense2; the activation is a class of its own."""

    class Activation(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.gelu(x)

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.dense1 = nn.Linear(dim, hidden)
        self.dwconv = DepthwiseLayer(hidden)
        self.intermediate_act_fn = self.Activation()
        self.dense2 = nn.Linear(hidden, dim)
        self.dropout = nn.Dropout(0.0)

    def forward(self, hidden_states: Tensor, height: int, width: int) -> Tensor:
        hidden_states = self.dwconv(self.dense1(hidden_states), height, width)
        hidden_states = self.dropout(self.intermediate_act_fn(hidden_states))
        return self.dropout(self.dense2(hidden_states))


class OldSegformerLayer(nn.Module):
    def __init__(self, dim: int = 32, heads: int = 2, sr: int = 2) -> None:
        super().__init__()
        self.attention = OldSegformerSelfAttention(dim, heads, sr)
        self.mlp = OldSegformerMixFFN(dim, 4 * dim)

    def forward(self, x: Tensor, height: int, width: int, output_attentions: bool = False) -> Any:
        attended = self.attention(x, height, width, output_attentions)
        x = x + attended[0]
        x = x + self.mlp(x, height, width)
        return (x, *attended[1:])


def picture(height: int = 64, width: int = 96, batch: int = 1) -> Tensor:
    """A seeded random picture (N, 3, H, W)."""
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))
