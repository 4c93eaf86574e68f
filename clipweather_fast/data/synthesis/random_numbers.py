"""Random numbers that are a pure function of a seed and of what they are for.

No generator has a state: every number is a hash of (seed, words, counter). So a sample's weather
does not depend on its neighbours in a batch, on the order of calls, or on the device. The hash
works on 32-bit integers, which every device computes alike, and a number has 24 bits, which float32
holds exactly.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["Draws", "key", "uniform"]

_MASK = 0xFFFFFFFF
_GOLDEN = 0x9E3779B9
# The multipliers of a published 32-bit mixer of low bias (two rounds of xorshift and multiply).
_FIRST, _SECOND = 0x7FEB352D, 0x846CA68B


def _mixed(x: int) -> int:
    x ^= x >> 16
    x = (x * _FIRST) & _MASK
    x ^= x >> 15
    x = (x * _SECOND) & _MASK
    return x ^ (x >> 16)


def _mixed_tensor(x: Tensor) -> Tensor:
    """:func:`_mixed` of each element, int64 in [0, 2³²); a new tensor."""
    x = x ^ (x >> 16)
    x.mul_(_FIRST).bitwise_and_(_MASK)  # int64 wraps, which leaves the low 32 bits right
    x ^= x >> 15
    x.mul_(_SECOND).bitwise_and_(_MASK)
    x ^= x >> 16
    return x


def key(seed: int, *words: str | int) -> int:
    """A 32-bit key for what ``words`` name, from any integer as seed.

    Keys of different words are unrelated, so each use has random numbers of its own.
    """
    seed &= 0xFFFFFFFFFFFFFFFF
    found = _mixed((seed & _MASK) ^ _mixed((seed >> 32) ^ _GOLDEN))
    for word in words:
        number = zlib.crc32(word.encode()) if isinstance(word, str) else word
        found = _mixed((found + _GOLDEN + (number & _MASK)) & _MASK)
    return found


def uniform(keys: Sequence[int], channels: int, count: int, device: torch.device) -> Tensor:
    """Numbers in [0, 1), float32 (channels, N, count), the same bits on every device.

    Number (c, n, i) is a function of ``keys[n]``, c and i alone.

    Args:
        keys: N keys of :func:`key`.
        channels: how many numbers each of the ``count`` things needs.
    """
    base = torch.tensor(keys, dtype=torch.int64).to(device)
    counter = torch.arange(count, device=device) * _GOLDEN
    hashes = _mixed_tensor((base[:, None] + counter) & _MASK)
    salt = (torch.arange(1, channels + 1, device=device) * _SECOND) & _MASK
    hashes = _mixed_tensor(hashes ^ salt[:, None, None])
    return (hashes >> 8).to(torch.float32).mul_(2.0**-24)


class Draws:
    """The parameters of one picture, drawn one after the other from a key."""

    def __init__(self, key: int) -> None:
        self._key = key
        self._count = 0

    def unit(self) -> float:
        """In [0, 1)."""
        self._count += 1
        return (_mixed((self._key + self._count * _GOLDEN) & _MASK) >> 8) * 2.0**-24

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * self.unit()

    def scaled(self, low: float, high: float) -> float:
        """In [low, high), its logarithm uniform: every factor of two is as likely."""
        return low * math.exp(math.log(high / low) * self.unit())

    def chance(self, probability: float) -> bool:
        """Whether something that happens with this probability does."""
        return self.unit() < probability
