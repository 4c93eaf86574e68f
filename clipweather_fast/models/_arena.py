"""Memory in which the tensors of one recorded pass take turns, as an allocator would let them.

What is given back is handed out again, so the pass keeps no more than it had alive at once, and
every tensor lies where it lay whenever the pass is replayed.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

__all__ = ["Arena"]

#: Buffers begin on a cache line.
LINE = 64
CHUNK = 4 << 20


@dataclass
class _Chunk:
    memory: np.ndarray
    whole: Tensor
    free: dict[int, int] = field(default_factory=dict)
    """Length of each free stretch, by its offset."""
    returned: deque[tuple[int, int]] = field(default_factory=deque)
    """Offsets and lengths that came back since; PyTorch lets go at any time, in any thread."""

    def take(self, length: int) -> int | None:
        """The offset of a stretch, out of the shortest that has room; None: there is none."""
        while self.returned:
            self._merge(*self.returned.popleft())
        found = min(((n, at) for at, n in self.free.items() if n >= length), default=None)
        if found is None:
            return None
        left, at = found
        del self.free[at]
        if left > length:
            self.free[at + length] = left - length
        return at

    def _merge(self, at: int, length: int) -> None:
        after = self.free.pop(at + length, 0)
        length += after
        for other, n in self.free.items():
            if other + n == at:
                self.free[other] = n + length
                return
        self.free[at] = length


class Arena:
    """Tensors on the CPU that give their memory back when the last view of them is gone."""

    def __init__(self) -> None:
        self._chunks: list[_Chunk] = []

    @property
    def bytes(self) -> int:
        """How much memory there is."""
        return sum(chunk.memory.size for chunk in self._chunks)

    def like(self, tensor: Tensor) -> Tensor:
        """Room for values of a tensor's dtype, shape and strides.

        Raises:
            ValueError: if the tensor is not dense.
        """
        if _reach(tensor) > tensor.numel():
            raise ValueError(f"Arena: not dense: {tuple(tensor.shape)} by {tensor.stride()}")
        item = tensor.element_size()
        length = max(-(-tensor.numel() * item // LINE) * LINE, LINE)
        chunk, at = self._stretch(length)
        # The array knows when PyTorch lets go of it.
        owner = chunk.memory[at : at + length]
        finalize(owner, chunk.returned.append, (at, length))
        buffer = torch.from_numpy(owner)[: tensor.numel() * item].view(tensor.dtype)
        return buffer.as_strided(tensor.shape, tensor.stride())

    def _stretch(self, length: int) -> tuple[_Chunk, int]:
        for chunk in self._chunks:
            at = chunk.take(length)
            if at is not None:
                return chunk, at
        memory = np.empty(max(CHUNK, length) + LINE, dtype=np.uint8)
        begin = -memory.ctypes.data % LINE
        memory = memory[begin : begin + max(CHUNK, length)]
        chunk = _Chunk(memory, torch.from_numpy(memory), {0: memory.size})
        self._chunks.append(chunk)
        at = chunk.take(length)
        assert at is not None
        return chunk, at

    def unowned(self, tensor: Tensor) -> Tensor:
        """The same place as a tensor that keeps nothing of it, if the place is of this arena."""
        if tensor.layout != torch.strided:
            return tensor
        begin = tensor.untyped_storage().data_ptr()
        for chunk in self._chunks:
            first = chunk.whole.data_ptr()
            if first <= begin < first + chunk.memory.size:
                offset = tensor.data_ptr() - first
                count = _reach(tensor) * tensor.element_size()
                place = chunk.whole[offset : offset + count].view(tensor.dtype)
                return place.as_strided(tensor.shape, tensor.stride())
        return tensor

    def spoil(self) -> None:
        """Fills all of it with what is no number in any floating-point type."""
        for chunk in self._chunks:
            chunk.memory.fill(0xFF)


def _reach(tensor: Tensor) -> int:
    """Elements from a tensor's first to its last."""
    if tensor.numel() == 0:
        return 0
    sides = zip(tensor.shape, tensor.stride(), strict=True)
    return 1 + sum((length - 1) * stride for length, stride in sides)
