"""Keys and values of a whole picture for the tiles it is cut into.

Attention that sees only its own tile judges the weather by it, and neighbouring tiles come out
differently. Whoever runs a network over tiles can join what all of them attend to.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from threading import local
from typing import Protocol

from torch import Tensor
from torch.compiler import is_compiling

__all__ = ["JointKeys", "joined", "joint_keys"]


class JointKeys(Protocol):
    """Whoever joins the keys and values of tiles."""

    def joined(self, layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
        """What a tile's queries attend to in one layer.

        Args:
            layer: whose keys and values they are.
            tokens: the tile's own, (1, height · width, C), row by row.
            height, width: of the tile's grid of them.

        Returns:
            (1, L, C), those of the whole picture in any order.
        """


_of_thread = local()


@contextmanager
def joint_keys(joint: JointKeys) -> Iterator[None]:
    """Within it, in this thread, attention asks ``joint``."""
    before = getattr(_of_thread, "joint", None)
    _of_thread.joint = joint
    try:
        yield
    finally:
        _of_thread.joint = before


def joined(layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens (N, height · width, C) as they are, or joined with other tiles' if somebody does.

    Compiled graphs never ask: what they attend to is fixed.
    """
    if is_compiling():
        return tokens
    joint: JointKeys | None = getattr(_of_thread, "joint", None)
    return tokens if joint is None else joint.joined(layer, tokens, height, width)
