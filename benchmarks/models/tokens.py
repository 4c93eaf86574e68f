"""Token tensors (N, H·W, C) of the network's stages, as modules take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.shapes import STAGES, hidden_size
from benchmarks.subject import DIRECTIONS, Case

__all__ = ["TokenSize", "random_tokens", "token_cases"]


@dataclass(frozen=True)
class TokenSize:
    """Tokens of one stage on an h × w grid."""

    name: str
    n: int
    h: int
    w: int
    dim: int
    heads: int
    reduction: int

    @property
    def tokens(self) -> int:
        return self.n * self.h * self.w


def random_tokens(
    size: TokenSize, dtype: torch.dtype, device: str, generator: torch.Generator
) -> Tensor:
    tokens = torch.randn(size.n, size.h * size.w, size.dim, generator=generator)
    return tokens.to(device, dtype)


def token_cases(device: str, headline: dict[tuple[str, str], str]) -> list[Case]:
    """Every picture and stage in fp32; ``headline`` maps (shape name, direction) to a scope."""
    cases = []
    for picture in ("256x256", "480x720", "1080p"):
        for number, stage in STAGES.items():
            grid = hidden_size(picture, number)
            size = TokenSize(
                grid.name, 1, grid.h, grid.w, stage.width, stage.heads, stage.reduction
            )
            for direction in DIRECTIONS:
                scope = headline.get((size.name, direction), "full")
                cases.append(Case(size, torch.float32, direction, scope))
    return cases
