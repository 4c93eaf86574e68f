"""Where layers compute in the dtype of their tensors whatever autocast says."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

__all__ = ["no_autocast"]


def no_autocast(device: str) -> AbstractContextManager[object]:
    """Inside, autocast rounds nothing on devices of this type."""
    # The meta device, on which shapes are computed, knows no autocast and objects to the word.
    # Where autocast is off, to switch it off takes up to a tenth of a millisecond.
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
