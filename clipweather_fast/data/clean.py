"""Crops of clear photographs, to be put into weather on the device."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from clipweather_fast.data.choices import Choices
from clipweather_fast.data.epoch import SharedEpoch
from clipweather_fast.data.held import HeldPictures
from clipweather_fast.data.pair import DatasetError
from clipweather_fast.data.paired import mirrored
from clipweather_fast.data.recoloring import MOST_RECOLORING, recolored
from clipweather_fast.data.transport import check_dtype, to_tensor
from clipweather_fast.data.weathers import WEATHERS
from clipweather_fast.data.window import Window, padded, picture_source
from clipweather_fast.restore.jobs import InputError, pictures
from clipweather_fast.restore.picture import PictureError, Samples

__all__ = ["CleanDataset"]


class CleanDataset(Dataset[dict[str, Tensor]]):
    """Random crops of clear photographs, each with a weather and a seed for the synthesis.

    ``dataset[i]`` is a dict: "truth" (3, crop, crop) float32 in [0, 1]; "seed" int64 and "weather"
    int64, the class, for ``degrade``; "index" int64. All are a pure function of (seed, epoch, i).
    Photographs take turns, so small ones are seen as often as large ones, and each weather is drawn
    with the same probability. 8- and 16-bit files give the values of their own depth.

    Photographs that fit together into ``held_bytes`` are decoded once, into memory that the worker
    processes share; larger collections are decoded crop by crop.

    Args:
        photographs: a folder, searched to the bottom, or files, folders and patterns.
        crop: side of the square crops; smaller photographs are mirrored at their edges.
        seed: of all random choices.
        samples_per_epoch: the dataset's length; None: one sample per photograph.
        weathers: the weathers to draw from, some of ``WEATHERS``.
        flips: mirror at random, upside down and left to right.
        shrink: reduce photographs by a random factor up to this, so that one of many megapixels
            also shows whole things, sharp and without noise; 1: never. All factors are equally
            likely on a logarithmic scale, and no photograph is made smaller than the crop.
        turns: also show crops on their side, with probability 1/2.
        recolor: how far colours are changed at random, see
            :func:`clipweather_fast.data.recoloring.recolored`; None: not at all. Networks learn
            a few dozen photographs by heart, and with them what drops hide.
        held_bytes: how much memory decoded photographs may take.
        dtype: ``torch.uint8`` gives bytes (see :func:`to_unit_range`); 16 bits are then rounded.

    Attributes:
        files: the photographs.

    Raises:
        DatasetError: there is no photograph, or one cannot be decoded.
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        photographs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        crop: int = 256,
        seed: int = 0,
        samples_per_epoch: int | None = None,
        *,
        weathers: Sequence[str] = WEATHERS,
        flips: bool = True,
        shrink: float = 1.0,
        turns: bool = False,
        recolor: float | None = None,
        held_bytes: int = 1 << 30,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if crop < 1:
            raise ValueError(f"CleanDataset: crop must be at least 1, got {crop}")
        if samples_per_epoch is not None and samples_per_epoch < 1:
            raise ValueError(
                f"CleanDataset: samples_per_epoch must be at least 1, got {samples_per_epoch}"
            )
        if not shrink >= 1:
            raise ValueError(f"CleanDataset: shrink must be at least 1, got {shrink}")
        if recolor is not None and not 0 <= recolor <= MOST_RECOLORING:
            raise ValueError(
                f"CleanDataset: recolor must be 0 to {MOST_RECOLORING:g} or None, got {recolor}"
            )
        if not weathers or not set(weathers) <= set(WEATHERS):
            raise ValueError(
                f"CleanDataset: weathers must be some of {', '.join(WEATHERS)}, got {weathers!r}"
            )
        check_dtype("CleanDataset", dtype)
        self.files = _files(photographs)
        self.crop, self.seed, self.flips = crop, seed, flips
        self.shrink, self.dtype = shrink, dtype
        self.turns, self.recolor = turns, recolor
        self.samples_per_epoch = samples_per_epoch or len(self.files)
        self._classes = [WEATHERS.index(weather) for weather in weathers]
        self._epoch = SharedEpoch()
        try:
            self._held = HeldPictures.decoded(self.files, held_bytes)
        except PictureError as error:
            raise DatasetError.at(error.path, error.words, "unreadable") from error

    @property
    def epoch(self) -> int:
        """The current epoch, also in worker processes that outlive one."""
        return self._epoch.value

    def set_epoch(self, epoch: int) -> None:
        """Other crops, weathers and seeds; call it before iterating over the loader."""
        self._epoch.value = epoch

    def __len__(self) -> int:
        return self.samples_per_epoch

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"CleanDataset: index {index} of {len(self)} samples")
        index %= len(self)
        choices = Choices("clean", self.seed, self.epoch, index)
        weather = self._classes[choices.below(len(self._classes))]
        seed = choices.number()
        try:
            pixels = self._varied(self._pixels(index % len(self.files), choices), index)
        except PictureError as error:
            raise DatasetError.at(error.path, error.words, "unreadable") from error
        return {
            "truth": to_tensor(pixels, self.dtype),
            "seed": torch.tensor(seed),
            "weather": torch.tensor(weather),
            "index": torch.tensor(index),
        }

    def _pixels(self, number: int, choices: Choices) -> Samples:
        """The crop, (crop, crop, 3) in the photograph's own depth."""
        if self._held is not None:
            whole = self._held[number]
            window = self._window(whole.shape[0], whole.shape[1], choices)
            rows = slice(window.top, window.top + window.height)
            part = whole[rows, window.left : window.left + window.width]
        else:
            with picture_source(self.files[number]) as source:
                window = self._window(source.height, source.width, choices)
                part = source.read(window)
        part = padded(part, window.height, window.width)
        if window.height > self.crop:
            part = _reduced(part, self.crop)
        return part[mirrored(choices)] if self.flips else part

    def _varied(self, pixels: Samples, index: int) -> Samples:
        # Numbers of their own: without these changes samples are what they always were.
        choices = Choices("clean, varied", self.seed, self.epoch, index)
        turned = choices.coin()
        if self.turns and turned:
            pixels = pixels.transpose(1, 0, 2)
        return pixels if self.recolor is None else recolored(pixels, self.recolor, choices)

    def _window(self, height: int, width: int, choices: Choices) -> Window:
        """What becomes the crop: larger than it where the photograph is reduced."""
        most = min(self.shrink, max(1.0, min(height, width) / self.crop))
        side = min(round(self.crop * most ** choices.fraction()), max(self.crop, height, width))
        top = choices.below(max(1, height - side + 1))
        left = choices.below(max(1, width - side + 1))
        return Window(top, left, side, side)


def _files(
    photographs: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
) -> list[Path]:
    one = isinstance(photographs, str | os.PathLike)
    names = [photographs] if one else photographs
    try:
        return pictures([os.fspath(name) for name in names])  # type: ignore[arg-type,union-attr]
    except InputError as error:
        raise DatasetError.at("CleanDataset", str(error), "missing") from error


def _reduced(pixels: Samples, side: int) -> Samples:
    """A square picture reduced to that side, in its own depth."""
    from torch.nn.functional import interpolate

    planes = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))[None]
    reduced = interpolate(planes, (side, side), mode="bicubic", antialias=True)[0]
    top = float(np.iinfo(pixels.dtype).max)
    rounded: Samples = reduced.round().clamp(0, top).permute(1, 2, 0).numpy().astype(pixels.dtype)
    return rounded
