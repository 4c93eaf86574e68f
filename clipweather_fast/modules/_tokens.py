"""Tokens and images are two views of one memory.

Dense tokens (N, H·W, C) are a channels-last image (N, C, H, W): going from one to the other moves
no byte, and these functions are how the modules do it.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["as_image", "as_tokens", "by_heads", "check", "keys_and_values"]


def check(who: str, x: Tensor, height: int, width: int) -> None:
    """``ValueError`` unless ``x`` is (N, L, C) with L = H·W."""
    if x.dim() != 3 or x.shape[1] != height * width:
        raise ValueError(
            f"{who}: x must be (N, L, C) with L = H·W = {height}·{width}, got {tuple(x.shape)}"
        )


def as_image(x: Tensor, height: int, width: int) -> Tensor:
    """Tokens (N, H·W, C) seen as an image (N, C, H, W); channels-last where they are dense."""
    return x.transpose(1, 2).view(x.shape[0], x.shape[2], height, width)


def as_tokens(image: Tensor) -> Tensor:
    """An image (N, C, H, W) seen as tokens (N, H·W, C); dense where the image is channels-last."""
    return image.flatten(2).transpose(1, 2)


def by_heads(x: Tensor, heads: int) -> Tensor:
    """Tokens (N, L, heads·d) seen head by head, (N, L, heads, d)."""
    return x.view(x.shape[0], x.shape[1], heads, x.shape[2] // heads)


def keys_and_values(kv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """Tokens (N, L, 2·heads·d), keys first, seen as keys and values (N, L, heads, d).

    Their gradients become one tensor in one pass; those of slices would be filled up with zeros and
    added.
    """
    both = kv.view(kv.shape[0], kv.shape[1], 2, heads, kv.shape[2] // (2 * heads))
    k, v = both.unbind(2)
    return k, v
