"""The other side of a comparison: this package's networks without its kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clipweather_fast.ops import use_backend
from clipweather_fast.ops.reduced_kv_attention import op
from clipweather_fast.ops.reduced_kv_attention.reference import attention_sdpa

__all__ = ["pytorch_alone"]

#: Its names are not this module's to change, as far as types go.
attention: Any = op


@contextmanager
def pytorch_alone(*, scores: bool = False) -> Iterator[None]:
    """Inside, PyTorch's operators compute everything, as in a network without this package.

    Args:
        scores: form the attention's scores, as the definition and the published code do; they take
            gigabytes at full HD. Without, ``F.scaled_dot_product_attention`` computes it. That is
            set for the whole process: other threads must not compute meanwhile.
    """
    by_definition = attention.reduced_kv_attention_reference
    if not scores:
        attention.reduced_kv_attention_reference = attention_sdpa
    try:
        with use_backend("reference"):
            yield
    finally:
        attention.reduced_kv_attention_reference = by_definition
