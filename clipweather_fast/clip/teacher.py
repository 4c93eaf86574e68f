"""CLIP's RN50x4 without its head: the teacher whose features the residuals are distilled from."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast._autocast import no_autocast
from clipweather_fast.clip import _towers
from clipweather_fast.clip.preprocessing import CLIP_MEAN, CLIP_STD, check_image, normalised
from clipweather_fast.clip.weights import Weights

__all__ = ["Teacher"]


class Teacher(nn.Module):
    """The frozen convolutional trunk of a CLIP ResNet; four feature maps per picture.

    The attention pooling, which takes one image size only, is not built in, so any picture of at
    least 32 × 32 will do. The trunk stays in eval mode, passes no gradient, and computes in the
    dtype of its parameters (float32) under autocast too. RN50x4 has 65,619,640 parameters here.

    Args:
        weights: a tag (``"openai"``), a file, ``"local-dir:FOLDER"``, ``"hf-hub:OWNER/NAME"``,
            tensors by name, or ``"random"`` for tests.
        model: an open_clip ResNet's name; OpenAI's weights need the ``-quickgelu`` names.

    Attributes:
        channels: of the four maps, stem, layer2, layer3 and layer4: (80, 640, 1280, 2560).
        strides: (4, 8, 16, 32). Sides are rounded down.

    Reference:
        The teacher of Eqs. 6-7 of arXiv 2306.09008 (CLIP-SRD).

    Raises:
        EncoderUnavailable: if open_clip or the weights are missing; the message says what to do.
        ValueError: for a model that is no ResNet, and for weights that do not belong to it.
    """

    strides = (4, 8, 16, 32)

    def __init__(self, weights: Weights | None = None, model: str = "RN50x4-quickgelu") -> None:
        super().__init__()
        self.who = f"teacher {model}"
        found = _towers.architecture(self.who, model)
        if not isinstance(found.vision["layers"], list):
            raise ValueError(f"{self.who}: the teacher must be one of CLIP's ResNets, like RN50x4")
        trunk = _towers.image_tower(self.who, found, weights)
        del trunk.attnpool
        self.trunk = trunk
        width: int = found.vision["width"]
        self.channels = (width, 8 * width, 16 * width, 32 * width)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> Teacher:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, image: Tensor) -> list[Tensor]:
        """Pictures (N, 3, H, W) in [0, 1] to four maps (N, channels[i], H // s_i, W // s_i).

        Raises:
            TypeError, ValueError: if ``image`` is not such a tensor, or a side is less than 32.
        """
        check_image(self.who, image)
        if min(image.shape[2:]) < self.strides[-1]:
            raise ValueError(
                f"{self.who}: image must be at least 32 × 32, got {tuple(image.shape)}; pad it"
            )
        trunk = cast(Any, self.trunk)
        with no_autocast(image.device.type):
            pixels = normalised(image.float(), CLIP_MEAN, CLIP_STD)
            stem: Tensor = trunk.stem(pixels.to(next(self.parameters()).dtype))
            second: Tensor = trunk.layer2(trunk.layer1(stem))
            third: Tensor = trunk.layer3(second)
            return [stem, second, third, trunk.layer4(third)]

    def pair(self, weather: Tensor, clean: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Both pictures' maps at once, as distillation compares them.

        Args:
            weather: pictures (N, 3, H, W) in [0, 1].
            clean: the same pictures without weather.

        Returns:
            The four maps of ``weather``, and those of ``clean``: halves of one batch, not copied.

        Raises:
            TypeError, ValueError: as :meth:`forward`, and if the shapes differ.
        """
        if weather.shape != clean.shape:
            raise ValueError(
                f"{self.who}: weather and clean must have one shape, "
                f"got {tuple(weather.shape)} and {tuple(clean.shape)}"
            )
        n = weather.shape[0]
        maps = self(torch.cat((weather, clean)))
        return [both[:n] for both in maps], [both[n:] for both in maps]
