"""The C allocator of both sides of a comparison.

glibc gives a large buffer back to the system when it is freed and takes it, page fault by page
fault, when it is next wanted. Eager PyTorch allocates much more than a fused kernel, so with the
default settings that inflates every ratio. Claims are made with settings that keep the memory; the
default is reported beside them.
"""

from __future__ import annotations

import ctypes
import os
import platform

__all__ = ["DEFAULT", "describe", "tune", "tuned"]

DEFAULT = "default"
#: Parameters of mallopt(3). The mmap threshold cannot exceed 32 MiB, less than one large image, so
#: mmap is switched off; freed memory stays: -1 means no trim.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TUNED = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: -1}
_state = {"tuned": False}
#: The heap's start, so that the first calls of a case meet pages that are there.
_HEAP = 2 << 30


def tune(heap: int = _HEAP) -> bool:
    """Makes this process keep the memory it frees; False where the C library is not glibc.

    ``heap`` bytes (at most a quarter of the machine's memory) are taken and touched at once.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    if not all(libc.mallopt(parameter, value) == 1 for parameter, value in _TUNED.items()):
        return False
    heap = min(heap, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4)
    block = libc.malloc(heap)
    if block:
        ctypes.memset(block, 1, heap)
        libc.free(block)
    _state["tuned"] = True
    return True


def tuned() -> bool:
    """Whether this process keeps the memory it frees."""
    return _state["tuned"]


def describe() -> str:
    """What a result file says of the allocator."""
    if not tuned():
        return DEFAULT
    return "tuned: glibc with M_MMAP_MAX=0, M_TRIM_THRESHOLD=-1, heap touched beforehand"
