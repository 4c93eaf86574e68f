"""Pictures in [0, 1] as the encoders want them: a fixed square, normalised."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.clip._encoder_input import native_encoder_input

__all__ = ["CLIP_MEAN", "CLIP_STD", "check_image", "encoder_input", "normalised", "squared"]

#: The channel statistics that OpenAI trained CLIP with.
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def check_image(who: str, image: Tensor) -> None:
    """``TypeError`` or ``ValueError`` unless ``image`` is floating point and (N, 3, H, W)."""
    if not image.is_floating_point():
        raise TypeError(
            f"{who}: image must be floating point in [0, 1], got {image.dtype}; divide by 255"
        )
    if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(
            f"{who}: image must be (N, 3, H, W) with H, W ≥ 1, got {tuple(image.shape)}"
        )


def encoder_input(
    image: Tensor, size: int, mean: tuple[float, ...], std: tuple[float, ...]
) -> Tensor:
    """Pictures (N, 3, H, W) in [0, 1] as normalised squares (N, 3, size, size), float32."""
    native = native_encoder_input(image, size, mean, std)
    return normalised(squared(image, size), mean, std) if native is None else native


def squared(image: Tensor, size: int) -> Tensor:
    """The whole picture (N, 3, H, W) resized to (N, 3, size, size), float32 in [0, 1].

    Bicubic with antialiasing, as Pillow resizes, whatever the aspect; nothing is cropped, because
    weather may be at the rim. What the cubic overshoots is clipped, as Pillow does.
    """
    image = image.float()
    if image.shape[0] == 0:
        return image.new_zeros(0, 3, size, size)
    square = F.interpolate(image, (size, size), mode="bicubic", antialias=True)
    return square.clamp(0.0, 1.0)


def normalised(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(image - mean) / std per channel, for (N, 3, H, W)."""
    # By channel with Python's numbers: constants in a buffer would be rounded by .to(bfloat16),
    # and new ones on every call would be copied to the device.
    channels = [(image[:, c] - mean[c]) / std[c] for c in range(3)]
    return torch.stack(channels, dim=1)
