"""Is Triton usable for a tensor here? Triton itself is imported only by the kernels' own files."""

from __future__ import annotations

import importlib.util
import os
from functools import cache

from torch import Tensor

from clipweather_fast.ops._native import GPU_DTYPES
from clipweather_fast.ops._tracing import constant_while_tracing

__all__ = ["interpreted", "why_not_triton"]


@constant_while_tracing
def interpreted() -> bool:
    """Whether Triton interprets kernels on CPU tensors (``TRITON_INTERPRET=1``)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def _why_not_installed() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if interpreted():
        return None
    from triton.runtime import driver  # imported late: it probes the machine

    try:
        driver.active.get_current_target()
    except RuntimeError as error:
        return f"triton has no active driver ({error})"
    return None


@constant_while_tracing
def _why_not_runnable() -> str | None:
    return _why_not_installed()


def why_not_triton(x: Tensor) -> str | None:
    """Why the Triton kernels cannot take ``x``, by device and dtype."""
    if x.dtype not in GPU_DTYPES:
        return f"the Triton kernels take float32, bfloat16 or float16, got {x.dtype}"
    if x.device.type == "cpu":
        if not interpreted():
            return "the Triton kernels take GPU tensors (CPU tensors only under TRITON_INTERPRET=1)"
    elif x.device.type != "cuda":
        return f"the Triton kernels take CUDA tensors, got {x.device.type}"
    return _why_not_runnable()
