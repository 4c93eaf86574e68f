"""Teachers for distillation that are not CLIP's ResNets: timm's networks, for comparison."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast.clip._imagenet import imagenet_network
from clipweather_fast.clip.preprocessing import check_image, normalised, squared
from clipweather_fast.clip.weights import Weights

__all__ = ["ImageNetTeacher"]


class ImageNetTeacher(nn.Module):
    """Four feature maps per picture of a frozen network of timm, at any of its depths.

    Of a network with five stages (a ResNet) they are those of stages 1, 3, 4 and 5, as
    :class:`clipweather_fast.clip.Teacher` takes them of CLIP's. Of a transformer they are the
    tokens after each quarter of its blocks, laid out as a map; the picture is resized to the square
    that it was trained with.

    Args:
        model: a timm model; a tag after a point decides the normalisation, as in
            ``"vit_base_patch16_224.mae"``.
        weights: one of timm's tags, a file, or ``"random"`` for tests.

    Attributes:
        channels: of the four maps.

    Reference:
        The teachers of Tables VI and VIII of arXiv 2306.09008.

    Raises:
        EncoderUnavailable: if timm or the weights are missing; the message says what to do.
        ValueError: for a model that is unknown or gives no intermediate maps.
    """

    def __init__(self, model: str, weights: Weights | None = None) -> None:
        super().__init__()
        self.who = f"teacher imagenet:{model}"
        self.network = imagenet_network(self.who, model, weights)
        described = cast(Any, self.network)
        if not hasattr(described, "forward_intermediates"):
            raise ValueError(f"{self.who}: it gives no intermediate maps")
        levels = [level["num_chs"] for level in described.feature_info]
        count = len(levels)
        staged = count == 5
        self.levels = [0, 2, 3, 4] if staged else [count * i // 4 - 1 for i in (1, 2, 3, 4)]
        self.channels: tuple[int, ...] = tuple(levels[i] for i in self.levels)
        config = described.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.size: int | None = None if staged else int(config["input_size"][-1])
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> ImageNetTeacher:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """Pictures (N, 3, H, W) in [0, 1] to four maps (N, channels[i], ·, ·), float32.

        Raises:
            TypeError, ValueError: if ``image`` is not such a tensor.
        """
        check_image(self.who, image)
        pixels = image.float() if self.size is None else squared(image.float(), self.size)
        with torch.autocast(image.device.type, enabled=False):
            found: list[Tensor] = cast(Any, self.network).forward_intermediates(
                normalised(pixels, self.mean, self.std),
                indices=self.levels,
                intermediates_only=True,
            )
        return found

    def pair(self, weather: Tensor, clean: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Both pictures' maps at once; see :meth:`clipweather_fast.clip.Teacher.pair`."""
        n = weather.shape[0]
        maps = self(torch.cat((weather, clean)))
        return [both[:n] for both in maps], [both[n:] for both in maps]
