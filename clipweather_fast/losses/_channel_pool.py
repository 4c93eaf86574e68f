"""Adaptive average pooling along the channels, and its adjoint.

Output i averages the inputs floor(i·C/c) to ceil((i + 1)·C/c), as ``adaptive_avg_pool3d`` does with
the channels as depth. These windows repeat: with g = gcd(C, c), every p = C/g inputs give q = c/g
outputs in the same way, so 2560 → 1024 is 512 times 5 → 2. A window is a few slices of the image,
added up at once, in whatever memory format it has; PyTorch's pooling walks each window by itself.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

__all__ = ["pooled", "spread"]


def windows(p: int, q: int) -> list[tuple[int, int]]:
    """First input and the one behind the last of each of q windows on p inputs."""
    return [(i * p // q, -(-(i + 1) * p // q)) for i in range(q)]


def pooled(x: Tensor, channels: int) -> Tensor:
    """x (N, C, H, W) to (N, channels, H, W), channels ≤ C; x itself if they are equal.

    Not differentiable: :func:`spread` is the gradient.
    """
    if x.shape[1] == channels:
        return x
    groups = gcd(x.shape[1], channels)
    inputs = x.unflatten(1, (groups, -1))
    out = _like(x, channels)
    outputs = out.unflatten(1, (groups, -1))
    for j, (begin, end) in enumerate(windows(inputs.shape[2], outputs.shape[2])):
        mean = outputs[:, :, j]
        if end - begin == 1:
            mean.copy_(inputs[:, :, begin])
            continue
        torch.add(inputs[:, :, begin], inputs[:, :, begin + 1], out=mean)
        for k in range(begin + 2, end):
            mean.add_(inputs[:, :, k])
        mean.mul_(1 / (end - begin))
    return out


def spread(grad: Tensor, channels: int) -> Tensor:
    """The gradient of :func:`pooled`: (N, c, H, W) to (N, channels, H, W), channels ≥ c."""
    if grad.shape[1] == channels:
        return grad
    groups = gcd(grad.shape[1], channels)
    parts = grad.unflatten(1, (groups, -1))
    out = _like(grad, channels)
    inputs = out.unflatten(1, (groups, -1))
    sizes = inputs.shape[2], parts.shape[2]
    shares = [(begin, end, 1 / (end - begin)) for begin, end in windows(*sizes)]
    for k in range(inputs.shape[2]):
        (first, share), *rest = [
            (j, share) for j, (begin, end, share) in enumerate(shares) if begin <= k < end
        ]
        torch.mul(parts[:, :, first], share, out=inputs[:, :, k])
        for j, share in rest:
            inputs[:, :, k].add_(parts[:, :, j], alpha=share)
    return out


def _like(x: Tensor, channels: int) -> Tensor:
    """An empty image with these channels in the memory format of ``x``, dense."""
    n, _, h, w = x.shape
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    return torch.empty((n, channels, h, w), dtype=x.dtype, device=x.device, memory_format=layout)
