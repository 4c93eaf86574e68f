"""Random choices that depend on what they are for, and on nothing that happened before."""

from __future__ import annotations

import struct
from hashlib import blake2b

__all__ = ["Choices"]

_BITS = 64


class Choices:
    """Up to eight random numbers, a pure function of a key such as (seed, epoch, index).

    A hash, not a generator: there is no state to save, the same key gives the same numbers on every
    machine, in every version and in every worker process.

    Args:
        purpose: keeps choices for different things apart that have the same numbers in their keys.
        key: integers of 64 bits.
    """

    def __init__(self, purpose: str, *key: int) -> None:
        wrapped = (number & (1 << _BITS) - 1 for number in key)
        packed = struct.pack(f"<{len(key)}Q", *wrapped)
        digest = blake2b(packed, person=purpose.encode()[:16]).digest()
        self._numbers = list(struct.unpack("<8Q", digest))

    def number(self, bits: int = 63) -> int:
        """An integer of at most so many bits."""
        return int(self._numbers.pop() >> (_BITS - bits))

    def below(self, count: int) -> int:
        """An integer from 0 to ``count - 1``."""
        return int(self._numbers.pop() * count >> _BITS)

    def fraction(self) -> float:
        """A number in [0, 1)."""
        return self.number(53) / (1 << 53)

    def coin(self) -> bool:
        """True or False."""
        return bool(self.number(1))
