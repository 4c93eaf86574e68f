"""Adaptive average pooling along the channels as a matrix product, and its adjoint.

Output i averages the inputs floor(i·C/c) to ceil((i + 1)·C/c), as ``adaptive_avg_pool3d`` does with
the channels as depth. These windows repeat: with g = gcd(C, c), every p = C/g inputs give q = c/g
outputs in the same way, so 2560 → 1024 is 512 times 5 → 2. Pooling is therefore a product with one
small matrix at every place of the image, in whatever memory format it has: two to eight times as
fast as PyTorch's pooling, whose gradient, besides, has no fixed order on a GPU.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor

__all__ = ["ChannelPool"]

#: Outputs of the matrix, about: several windows are one block of it, because products with fewer
#: columns are slow (3 times for 8 → 5), and more of it would be zeros.
OUTPUTS = 20


class ChannelPool:
    """Pools images (N, inputs, H, W) to (N, outputs, H, W), outputs ≤ inputs.

    Nothing here is differentiable: :meth:`spread` is the gradient of calling it. Products are those
    of PyTorch's matrix products, so TF32 where that is switched on.

    Args:
        inputs, outputs: numbers of channels; where they are equal everything stays as it is.
        like: its dtype and device are the images'.
    """

    def __init__(self, inputs: int, outputs: int, like: Tensor) -> None:
        self._matrix: Tensor | None = None
        if inputs == outputs:
            return
        groups = gcd(inputs, outputs)
        p, q = inputs // groups, outputs // groups
        together = 1
        while groups % (2 * together) == 0 and 2 * together * q <= OUTPUTS:
            together *= 2
        # Computed on the device: numbers from here would be copied there, and a GPU waited for.
        i = torch.arange(together * q, device=like.device)
        k = torch.arange(together * p, device=like.device)[:, None]
        begin, end = i * p // q, ((i + 1) * p + q - 1) // q
        inside = ((k >= begin) & (k < end)).to(like.dtype)
        self._matrix = inside / (end - begin)

    def __call__(self, x: Tensor) -> Tensor:
        """An image (N, inputs, H, W) pooled; itself if there is nothing to pool."""
        return x if self._matrix is None else _times(x, self._matrix)

    def spread(self, grad: Tensor) -> Tensor:
        """The gradient of the image, of the gradient (N, outputs, H, W) of the pooled one."""
        return grad if self._matrix is None else _times(grad, self._matrix.T)


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """Blocks of channels of x (N, C, H, W) times a matrix, in the memory format of x."""
    if x.stride(1) == 1:
        rows: Tensor = x.permute(0, 2, 3, 1).unflatten(3, (-1, matrix.shape[0]))
        return torch.matmul(rows, matrix).flatten(3).permute(0, 3, 1, 2)
    columns: Tensor = x.flatten(2).unflatten(1, (-1, matrix.shape[0]))
    product: Tensor = torch.matmul(matrix.T, columns).flatten(1, 2)
    return product.view(*product.shape[:2], *x.shape[2:])
