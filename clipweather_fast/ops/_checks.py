"""Argument checks that every op shares. Errors name the op, what was expected and what came."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = [
    "autocast",
    "choice",
    "image",
    "optional_shape",
    "parameter_dtype",
    "same_device",
    "same_dtype",
    "shape",
    "tensor",
]

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def tensor(op: str, name: str, value: Any) -> None:
    """``TypeError`` unless ``value`` is a strided floating-point tensor the ops take."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{op}: {name} must be a tensor, got {type(value).__name__}")
    if value.dtype not in FLOATS:
        raise TypeError(
            f"{op}: {name} must be float32, bfloat16, float16 or float64, got {value.dtype}; "
            f"convert it with {name}.float()"
        )
    if value.layout != torch.strided:
        raise TypeError(f"{op}: {name} must be a strided (dense) tensor, got {value.layout}")


def image(op: str, name: str, value: Any) -> None:
    """A floating-point tensor (N, C, H, W)."""
    tensor(op, name, value)
    if value.dim() != 4:
        raise ValueError(f"{op}: {name} must be (N, C, H, W), got {tuple(value.shape)}")


def shape(op: str, name: str, value: Any, letters: str, expected: tuple[int, ...]) -> None:
    """A floating-point tensor of exactly this shape."""
    tensor(op, name, value)
    if tuple(value.shape) != expected:
        raise ValueError(f"{op}: {name} must be {letters} = {expected}, got {tuple(value.shape)}")


def optional_shape(op: str, name: str, value: Any, letters: str, expected: tuple[int, ...]) -> None:
    """None, or a floating-point tensor of exactly this shape."""
    if value is not None:
        shape(op, name, value, letters, expected)


def same_device(op: str, x: Tensor, **others: Any) -> None:
    """Every tensor given lies where ``x`` lies; None stands for an absent optional one."""
    for name, other in others.items():
        if other is None:
            continue
        tensor(op, name, other)
        if other.device != x.device:
            raise ValueError(
                f"{op}: {name} must be on the device of the first argument, {x.device}, "
                f"got {other.device}"
            )


def same_dtype(op: str, x: Tensor, **others: Tensor) -> None:
    """Every tensor given has the dtype of ``x``."""
    for name, other in others.items():
        if other.dtype != x.dtype:
            raise TypeError(
                f"{op}: {name} must have the dtype of the first argument, {x.dtype}, "
                f"got {other.dtype}"
            )


def parameter_dtype(op: str, x: Tensor, **parameters: Tensor | None) -> None:
    """Every parameter given is float32 or of the dtype of ``x``; for float64 only the latter."""
    for name, parameter in parameters.items():
        if parameter is None or parameter.dtype == x.dtype:
            continue
        if parameter.dtype != torch.float32 or x.dtype == torch.float64:
            both = x.dtype in (torch.bfloat16, torch.float16)
            allowed = f"{x.dtype}" + (" or torch.float32" if both else "")
            raise TypeError(f"{op}: {name} must be {allowed}, got {parameter.dtype}")


def choice(op: str, name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """One of a few words."""
    if value not in allowed:
        raise ValueError(f"{op}: {name} must be one of {', '.join(allowed)}, got {value!r}")


def autocast(x: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Activations in the autocast dtype where autocast is on (float64 stays, as in torch)."""
    kind = x.device.type
    if kind not in ("cpu", "cuda") or not torch.is_autocast_enabled(kind):
        return (x, *others)
    dtype = torch.get_autocast_dtype(kind)
    return tuple(t if t.dtype == torch.float64 else t.to(dtype) for t in (x, *others))
