"""reduced_kv_attention in plain PyTorch: by its definition, and by PyTorch's own attention."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

__all__ = ["attention_sdpa", "reduced_kv_attention_reference"]


def reduced_kv_attention_reference(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """softmax(scale · q kᵀ) v by its definition, scores and all: (N, Lq, heads, d), dense."""
    scores = scale * (q.transpose(1, 2) @ k.permute(0, 2, 3, 1))
    return (scores.softmax(-1) @ v.transpose(1, 2)).transpose(1, 2).contiguous()


def attention_sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The same by ``F.scaled_dot_product_attention``: (N, Lq, heads, d), dense."""
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    return F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2).contiguous()
