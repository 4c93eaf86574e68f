"""What the tiles of one picture tell each other on their way through a network.

Attention that sees only its own tile judges the weather by it, and convolutions see nothing beyond
its rim; neighbouring tiles come out differently. Whoever runs a network over tiles can join what
all of them attend to, and give each the rims that its neighbours know better.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Protocol

from torch import Tensor
from torch.compiler import is_compiling

__all__ = ["Joint", "in_step", "joined", "joined_keys", "joined_rims"]


class Joint(Protocol):
    """Whoever joins tiles."""

    def keys(self, layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
        """What a tile's queries attend to in one layer.

        Args:
            layer: whose keys and values they are.
            tokens: the tile's own, (1, height · width, C), row by row.
            height, width: of the tile's grid of them.

        Returns:
            (1, L, C), those of the whole picture in any order.
        """

    def rims(self, layer: object, images: tuple[Tensor, ...]) -> None:
        """Overwrites what neighbours know better in a tile's features.

        Args:
            layer: that asks.
            images: (1, C, h, w), all of one height and width; written to.
        """


_of_thread = local()


@contextmanager
def in_step(joint: Joint) -> Iterator[None]:
    """Within it, in this thread, layers ask ``joint``."""
    before = getattr(_of_thread, "joint", None)
    _of_thread.joint = joint
    try:
        yield
    finally:
        _of_thread.joint = before


def _asked() -> Joint | None:
    """Compiled graphs never ask: what they see is fixed."""
    return None if is_compiling() else getattr(_of_thread, "joint", None)


def joined() -> bool:
    """Whether somebody joins tiles in this thread."""
    return _asked() is not None


def joined_keys(layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (N, height · width, C) as they are, or joined with other tiles' if somebody does."""
    joint = _asked()
    return tokens if joint is None else joint.keys(layer, tokens, height, width)


def joined_rims(layer: object, *images: Tensor) -> None:
    """Gives features (N, C, h, w) their neighbours' rims, in place, if somebody joins tiles.

    A network asks often enough that between two times nothing is seen from further away than half
    of what tiles share: then it computes what it would compute for the whole picture.
    """
    joint = _asked()
    if joint is not None:
        joint.rims(layer, images)
