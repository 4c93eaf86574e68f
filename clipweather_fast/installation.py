"""What is installed and what runs where: the facts behind ``clipweather env`` and a bug report."""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

import clipweather_fast
from clipweather_fast import env, ops
from clipweather_fast.ops import _native

__all__ = ["SAMPLES", "processor", "report", "sample"]

#: Small arguments for each operator, as shapes; enough for a backend to say whether it would run.
SAMPLES: dict[str, tuple[tuple[int, ...], ...]] = {
    "dense_conv2d": ((1, 64, 8, 8), (64, 64, 3, 3), (64,)),
    "depthwise_conv2d": ((1, 64, 8, 8), (64, 1, 3, 3), (64,)),
    "reduced_kv_attention": ((1, 64, 1, 64), (1, 16, 1, 64), (1, 16, 1, 64)),
    "sar_conv2d": ((1, 64, 8, 8), (1, 3, 8, 8), (3, 64, 3, 3), (3, 64)),
    "sar_logits": ((1, 64, 8, 8), (64, 1, 3, 3), (64,), (3, 64, 1, 1), (3,)),
    "sar_mixer": (
        (1, 64, 8, 8),
        *((64, 1, 3, 3), (64,), (3, 64, 1, 1), (3,)),
        *((3, 64, 3, 3), (3, 64), (64, 1, 3, 3), (64,)),
    ),
}


def sample(operator: str, device: str, dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    """Arguments with which ``ops.<operator>`` can be called on this device."""
    return tuple(torch.zeros(shape, device=device, dtype=dtype) for shape in SAMPLES[operator])


def processor() -> str:
    """The processor's name as the system has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def report() -> Iterator[str]:
    """The lines that ``clipweather env`` prints."""
    yield from _versions()
    yield ""
    yield from _native_core()
    yield ""
    yield from _variables()
    for device in _devices():
        yield ""
        yield from _operators(device)


def _versions() -> Iterator[str]:
    yield f"clipweather_fast {clipweather_fast.__version__}"
    yield f"python           {platform.python_version()} on {platform.machine()}"
    yield f"torch            {torch.__version__}, {torch.get_num_threads()} threads"
    for name in ("triton", "timm", "transformers"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = "not installed"
        yield f"{name:<16} {version}"


def _native_core() -> Iterator[str]:
    reason = _native.why_not_loaded()
    if reason is not None:
        yield f"native core      no: {reason}"
        return
    core = _native.core()
    chosen = _native.CPU_ISAS[core.cpu_isa]
    yield f"cpu kernels      {core.cpu_isas.replace(',', ', ')} (this processor runs {chosen})"
    cuda = _native.why_not_cuda_built()
    if cuda is None:
        archs = core.cuda_archs.replace(",", ", ")
        yield f"cuda kernels     compute capabilities {archs}, and PTX for later ones"
    else:
        yield f"cuda kernels     no: {cuda}"


def _variables() -> Iterator[str]:
    width = max(map(len, env.VARIABLES))
    for name in sorted(env.VARIABLES):
        yield f"{name:<{width}} = {env.read(name) or '(not set)'}"


def _devices() -> Iterator[str]:
    yield "cpu"
    for index in range(torch.cuda.device_count()):
        yield f"cuda:{index}"


def _operators(device: str) -> Iterator[str]:
    name = f" ({torch.cuda.get_device_name(device)})" if device != "cpu" else ""
    yield f"operators on {device}{name}, float32:"
    for operator in sorted(SAMPLES):
        function: Callable[..., object] = getattr(ops, operator)
        yield f"  {operator}"
        for backend, answer in ops.explain(function, *sample(operator, device)).items():
            yield f"    {backend:<10} {answer if answer.startswith('yes') else 'no: ' + answer}"
