"""The native core as the operators see it: is it there, which dtypes, how a tensor crosses over."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clipweather_fast.ops._tracing import constant_while_tracing

__all__ = [
    "DTYPE_CODES",
    "GATES",
    "address",
    "core",
    "matrix_unit",
    "stream",
    "why_not_cpu",
    "why_not_cuda",
]

#: Codes of csrc/common/dtype.h.
DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
GATES = {"none": 0, "softmax": 1, "sigmoid": 2}
ACTIVATIONS = {"none": 0, "gelu": 1}
#: By the value of ``_C.cpu_isa``.
CPU_ISAS = ("baseline", "avx2", "avx512", "avx512_bf16", "amx")
#: The CUDA and Triton kernels' dtypes; the CPU kernels add float64.
GPU_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("clipweather_fast._C"), ""
    except ImportError as error:
        return None, f"the native core could not be loaded ({error}); reinstall with pip install ."


@constant_while_tracing
def why_not_loaded() -> str | None:
    """``None`` if the native core is there, else the reason."""
    module, reason = _load()
    return None if module is not None else reason


@constant_while_tracing
def why_not_cuda_built() -> str | None:
    """``None`` if the native core is there with CUDA kernels, else the reason."""
    module, reason = _load()
    if module is None:
        return reason
    return None if module.cuda_built else f"built without CUDA kernels ({module.cuda_reason})"


def core() -> ModuleType:
    """The native core. Call only after ``why_not_*`` said ``None``."""
    module, reason = _load()
    if module is None:
        raise ImportError(reason)
    return module


@constant_while_tracing
def matrix_unit() -> bool:
    """Whether the CPU kernels multiply by AMX."""
    module, _ = _load()
    return module is not None and CPU_ISAS[module.cpu_isa] == "amx"


@constant_while_tracing
def wide_vectors() -> bool:
    """Whether the CPU kernels have the registers of AVX-512."""
    module, _ = _load()
    return module is not None and CPU_ISAS[module.cpu_isa].startswith(("avx512", "amx"))


def pairs_pay() -> bool:
    """Whether the CPU kernels multiply pairs of bfloat16, by an instruction or by AMX. They choose
    that where it is faster than float32 (csrc/common/cpu_dispatch.cpp), or are forced to."""
    module, _ = _load()
    return module is not None and CPU_ISAS[module.cpu_isa] in ("avx512_bf16", "amx")


def bfloat16_pays() -> bool:
    """Whether networks are faster in bfloat16 than in float32 on this processor; on others than x86
    nobody has measured, and this is False."""
    if pairs_pay() or _torch_has_amx():
        return True
    if why_not_loaded() is None:
        return False
    # PyTorch alone. Intel's processors with float16 arithmetic are slow at pairs without AMX.
    known: Callable[[], dict[str, Any]] | None = getattr(torch.cpu, "get_capabilities", None)
    can = known() if known is not None else {}
    slow = can.get("avx512_fp16") and "Intel" in str(can.get("cpu_name", "Intel"))
    return bool(can.get("avx512_bf16")) and not slow


def _torch_has_amx() -> bool:
    """Whether PyTorch multiplies by AMX: the processor has it, and the system grants it."""
    has = getattr(torch.cpu, "_is_amx_tile_supported", None)
    granted = getattr(torch.cpu, "_init_amx", None)
    return has is not None and granted is not None and has() and granted()


def why_not_cpu(x: Tensor) -> str | None:
    """Why the CPU kernels cannot take ``x``, by device and dtype."""
    if x.device.type != "cpu":
        return f"the CPU kernels take CPU tensors, got {x.device.type}"
    if x.dtype not in DTYPE_CODES:
        return f"the CPU kernels take float32, bfloat16, float16 or float64, got {x.dtype}"
    return why_not_loaded()


def why_not_cuda(x: Tensor) -> str | None:
    """Why the CUDA kernels cannot take ``x``, by device and dtype."""
    if x.device.type != "cuda":
        return f"the CUDA kernels take CUDA tensors, got {x.device.type}"
    if x.dtype not in GPU_DTYPES:
        return f"the CUDA kernels take float32, bfloat16 or float16, got {x.dtype}"
    return why_not_cuda_built()


def address(tensor: Tensor | None) -> int:
    """Where the tensor's first element lies; 0 stands for an absent optional tensor."""
    return 0 if tensor is None else tensor.data_ptr()


def stream(device: torch.device) -> int:
    """The current CUDA stream's handle."""
    return torch.cuda.current_stream(device).cuda_stream
