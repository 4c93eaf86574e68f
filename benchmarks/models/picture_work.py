"""What a network has to compute for a picture: true floating-point operations."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.models.picture_sides import network
from clipweather_fast.speed import pytorch_alone

__all__ = ["flops"]


@cache
def flops(name: str, given_prior: bool, h: int, w: int) -> int:
    """Operations for one picture, prior included; a multiply-add is two.

    Counted on tensors without memory, in plain PyTorch: matrix products, convolutions and attention
    on the picture as the network pads it; activations, norms and additions are left out.
    """
    bare = copy.deepcopy(network(name, given_prior)).to("meta")
    original: Any = network(name, given_prior)
    encoders = [copy.deepcopy(encoder).to("meta") for encoder in getattr(original, "_frozen", ())]
    image = torch.empty(1, 3, h, w, device="meta")
    fast_path = torch.backends.mha.get_fastpath_enabled()
    # One operator of many products, which the counter does not know.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), pytorch_alone():
            bare(image, encoders[0](image) if encoders else bare.encode_prior(image))
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return int(counter.get_total_flops())
