"""Networks whose tensors have shapes and no memory, to be compared with a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

__all__ = ["give_memory", "without_values"]


#: What draws values, as functions of torch.nn.init and as methods, and what shapes those drawn.
DRAWING = {"normal_", "uniform_", "erfinv_", "mul_", "add_", "clamp_"}


class _NothingDrawn(TorchFunctionMode):
    """Leaves out the drawing of random values.

    PyTorch draws those of tensors without memory in Python, through decompositions that import its
    compiler and a computer algebra: half of the time in which a picture is restored.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in DRAWING:
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


@contextmanager
def without_values() -> Iterator[None]:
    """Inside, what is constructed is on the meta device, and nothing is initialised at random."""
    with torch.device("meta"), _NothingDrawn():
        yield


def give_memory(network: nn.Module, device: torch.device) -> None:
    """Puts tensors of the same shapes and memory formats in the place of those without memory.

    As ``Module.to_empty``, which takes the same way through PyTorch's decompositions.
    """

    def empty(tensor: Tensor) -> Tensor:
        shape, stride = tensor.shape, tensor.stride()
        return torch.empty_strided(shape, stride, dtype=tensor.dtype, device=device)

    network._apply(empty)
