"""CutMix across weathers: parts of two scenes in one picture, and labels by area."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast.data.choices import Choices
from clipweather_fast.data.weathers import WEATHERS

__all__ = ["cutmix"]

#: What is mixed, where it is there.
PICTURES = ("image", "truth")


def cutmix(
    batch: dict[str, Any], probability: float = 0.5, alpha: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Pastes the same box of a partner's image and truth into every picture of a batch.

    One box and one random permutation of partners serve the whole batch. The box takes the share
    1 - λ of the area, λ from Beta(alpha, alpha); its centre is anywhere, so the edges may cut it,
    and the labels are weighted by the area that remains, to the pixel.

    Args:
        batch: "image" and "truth" (N, 3, H, W) on any device, either or both; and "labels"
            (N, 3), or "weather" (N,) int64 in 0 to 2 or -1 for unknown. Nothing in it is changed.
        probability: of mixing at all, for the batch.
        alpha: of the Beta distribution; 1: every area is equally likely.
        seed: decides everything; take a new one for each batch.

    Returns:
        The batch with new pictures and "labels" (N, 3) float32: the share of the picture's area
        that each weather of ``WEATHERS`` has. What is of unknown weather counts for none. Unmixed
        batches get labels too. "weather" and "index" remain those of the larger picture's owner,
        the one pasted into.

    Raises:
        ValueError: a probability outside [0, 1], an alpha that is not positive, pictures of
            different sizes, or neither labels nor weather.
    """
    if not 0 <= probability <= 1:
        raise ValueError(f"cutmix: probability must be in [0, 1], got {probability}")
    if not alpha > 0:
        raise ValueError(f"cutmix: alpha must be positive, got {alpha}")
    names = [name for name in PICTURES if name in batch]
    sizes = {tuple(batch[name].shape) for name in names}
    if len(sizes) != 1:
        raise ValueError(
            f"cutmix: a batch needs an image or a truth, both of one size, got {sorted(sizes)}"
        )
    count, _, height, width = sizes.pop()
    mixed = dict(batch)
    labels = mixed["labels"] = _labels(batch)
    choices = Choices("cutmix", seed)
    if choices.fraction() >= probability or count == 0:
        return mixed
    random = np.random.Generator(np.random.PCG64(choices.number()))
    top, bottom, left, right = _box(random, alpha, height, width)
    partners = torch.from_numpy(random.permutation(count)).to(labels.device)
    for name in names:
        pictures: Tensor = batch[name].clone()
        pasted = batch[name][..., top:bottom, left:right]
        pictures[..., top:bottom, left:right] = pasted[partners.to(pasted.device)]
        mixed[name] = pictures
    share = (bottom - top) * (right - left) / (height * width)
    mixed["labels"] = labels * (1 - share) + labels[partners] * share
    return mixed


def _labels(batch: dict[str, Any]) -> Tensor:
    """The batch's soft labels, or its weathers as such; rows of zeros where nothing is known."""
    if "labels" in batch:
        labels: Tensor = batch["labels"]
        return labels
    if "weather" not in batch:
        raise ValueError("cutmix: a batch needs labels or weather")
    weather: Tensor = batch["weather"]
    known = F.one_hot(weather.clamp_min(0), len(WEATHERS)).to(torch.float32)
    return known * (weather >= 0).to(torch.float32)[:, None]


def _box(
    random: np.random.Generator, alpha: float, height: int, width: int
) -> tuple[int, int, int, int]:
    """Top, bottom, left and right of the box, within the picture."""
    side = math.sqrt(1 - random.beta(alpha, alpha))
    tall, wide = round(height * side), round(width * side)
    top = int(random.integers(height)) - tall // 2
    left = int(random.integers(width)) - wide // 2
    return max(0, top), min(height, top + tall), max(0, left), min(width, left + wide)
