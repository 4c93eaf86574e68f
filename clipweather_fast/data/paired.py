"""Pairs of crops for training, pairs of pictures for evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipweather_fast.data.choices import Choices
from clipweather_fast.data.epoch import SharedEpoch
from clipweather_fast.data.pair import DatasetError, Pair
from clipweather_fast.data.transport import check_dtype, to_tensor
from clipweather_fast.data.window import Source, Window, padded, picture_source
from clipweather_fast.restore.picture import PictureError, Samples

__all__ = ["PairDataset"]


class PairDataset(Dataset[dict[str, Tensor]]):
    """Degraded pictures and truths, cropped and mirrored alike.

    ``dataset[i]`` is a dict: "image" and "truth" (3, h, w), float32 in [0, 1]; "weather" int64, the
    class, -1 unknown; "index" int64. All random choices are a pure function of (seed, epoch, i): it
    does not matter which worker process makes a sample, and resuming needs no saved state.

    Pictures smaller than the crop are mirrored at their lower and right edge: the pixels stay those
    of the photograph. ``small="resize"`` enlarges them as TransWeather does (Lanczos, only the
    sides that are too short, so the shape changes).

    Args:
        pairs: what :func:`find_pairs` found.
        crop: side of the square crops; None: whole pictures (then batches need one size).
        flips: mirror at random, upside down and left to right, each with probability 1/2. Without
            a crop nothing is mirrored.
        seed: of the random choices.
        small: what becomes of pictures smaller than the crop: "mirror" or "resize".
        dtype: ``torch.uint8`` gives bytes, which :func:`to_unit_range` turns into float32 on the
            device; 16-bit pictures are then rounded.

    Raises:
        DatasetError: when a sample is read: a file cannot be decoded, or image and truth differ in
            size; it names the files.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        crop: int | None = 256,
        flips: bool = True,
        seed: int = 0,
        *,
        small: Literal["mirror", "resize"] = "mirror",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if not pairs:
            raise ValueError("PairDataset: there are no pairs")
        if crop is not None and crop < 1:
            raise ValueError(f"PairDataset: crop must be at least 1 or None, got {crop}")
        if small not in ("mirror", "resize"):
            raise ValueError(f"PairDataset: small must be 'mirror' or 'resize', got {small!r}")
        check_dtype("PairDataset", dtype)
        self.pairs = list(pairs)
        self.crop, self.flips, self.seed, self.small, self.dtype = crop, flips, seed, small, dtype
        self._epoch = SharedEpoch()

    @property
    def epoch(self) -> int:
        """The current epoch, also in worker processes that outlive one."""
        return self._epoch.value

    def set_epoch(self, epoch: int) -> None:
        """Other crops and flips; call it before iterating over the loader."""
        self._epoch.value = epoch

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"PairDataset: index {index} of {len(self)} pairs")
        index %= len(self)
        pair = self.pairs[index]
        try:
            image, truth = self._pixels(pair, Choices("pair", self.seed, self.epoch, index))
        except PictureError as error:
            raise DatasetError.at(error.path, error.words, "unreadable") from error
        return {
            "image": to_tensor(image, self.dtype),
            "truth": to_tensor(truth, self.dtype),
            "weather": torch.tensor(pair.label),
            "index": torch.tensor(index),
        }

    def _pixels(self, pair: Pair, choices: Choices) -> tuple[Samples, Samples]:
        with picture_source(pair.image) as image, picture_source(pair.truth) as truth:
            if (image.height, image.width) != (truth.height, truth.width):
                raise DatasetError.at(
                    pair.image,
                    f"has {image.width} x {image.height} pixels, but its truth {pair.truth} has "
                    f"{truth.width} x {truth.height}; a pair needs one size",
                    "sizes",
                )
            if self.crop is None:
                return image.read(), truth.read()
            window = random_window(image, self.crop, choices)
            crops = image.read(window), truth.read(window)
        fit = padded if self.small == "mirror" else _enlarged
        image_crop, truth_crop = (fit(pixels, self.crop, self.crop) for pixels in crops)
        if self.flips:
            mirror = mirrored(choices)
            return image_crop[mirror], truth_crop[mirror]
        return image_crop, truth_crop


def random_window(source: Source, crop: int, choices: Choices) -> Window:
    """A square window, every place in the picture equally likely."""
    top = choices.below(max(1, source.height - crop + 1))
    left = choices.below(max(1, source.width - crop + 1))
    return Window(top, left, crop, crop)


def mirrored(choices: Choices) -> tuple[slice, slice]:
    """Index that mirrors rows and columns, each with probability 1/2."""
    rows, columns = (slice(None, None, -1 if choices.coin() else 1) for _ in range(2))
    return rows, columns


def _enlarged(pixels: Samples, height: int, width: int) -> Samples:
    """Sides that are too short enlarged by Lanczos interpolation."""
    from PIL import Image

    height, width = max(height, pixels.shape[0]), max(width, pixels.shape[1])
    if pixels.shape[:2] == (height, width):
        return pixels
    top = int(np.iinfo(pixels.dtype).max)
    # Per channel in floats: Pillow has no 16-bit colours.
    planes: list[Any] = [
        Image.fromarray(np.ascontiguousarray(pixels[..., channel], dtype=np.float32)).resize(
            (width, height), Image.Resampling.LANCZOS
        )
        for channel in range(pixels.shape[2])
    ]
    enlarged = np.stack([np.asarray(plane) for plane in planes], axis=2)
    rounded: Samples = np.rint(enlarged).clip(0, top).astype(pixels.dtype)
    return rounded
