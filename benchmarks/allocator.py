"""The C allocator of both sides of a comparison.

glibc gives a large buffer back to the system when it is freed and takes it, page fault by page
fault, when it is next wanted. Eager PyTorch allocates much more than a fused kernel, so with the
default settings that inflates every ratio. Claims are made with settings that keep the memory; the
default is reported beside them.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["DEFAULT", "describe", "tune"]

DEFAULT = "default"
#: Parameters of mallopt(3). The mmap threshold cannot exceed 32 MiB, less than one large image, so
#: mmap is switched off; freed memory stays (no trim) and the heap grows in large steps.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4
_TUNED = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 64 << 20}


def tune() -> bool:
    """Makes this process keep the memory it frees; False where the C library is not glibc."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _TUNED.items())


def describe(tuned: bool) -> str:
    """What a result file says of the allocator."""
    if not tuned:
        return DEFAULT
    return "tuned: glibc MMAP_MAX=0 TRIM_THRESHOLD=2147483647 TOP_PAD=67108864"
