"""Attention to a reduced set of keys."""

from clipweather_fast.ops.reduced_kv_attention.op import reduced_kv_attention

__all__ = ["reduced_kv_attention"]
