"""PSNR and SSIM of a restored picture, under a protocol."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from clipweather_fast.evaluation.protocols import Protocol, protocol_named
from clipweather_fast.evaluation.samples import Samples, arranged, compared, samples_of
from clipweather_fast.evaluation.similarity import SIDES, similarity

__all__ = ["Score", "psnr", "score", "ssim"]


#: Samples of a strip: what is made of it stays in a processor's cache of one to two MiB.
STRIP = 1 << 15


@dataclass(frozen=True)
class Score:
    """What a protocol says of a restored picture.

    Attributes:
        protocol: its name. Scores of different protocols must not be compared.
        psnr: in decibels; infinity: the pictures are the same under this protocol.
        ssim: at most 1.
    """

    protocol: str
    psnr: float
    ssim: float

    def __str__(self) -> str:
        return f"{self.psnr:.2f} dB, {self.ssim:.4f} ({self.protocol})"


def psnr(restored: Any, truth: Any, protocol: str | Protocol = "paper") -> float:
    """How near a restored picture is to the truth: peak signal-to-noise ratio.

    .. math:: 10 \\log_{10} (L^2 / \\mathrm{mean} (x - y)^2)

    over the samples that the protocol compares, with L its peak.

    Args:
        restored: a path; a Picture; an image of Pillow's; an array (H, W, 3) or gray (H, W); a
            tensor (3, H, W) or (1, 3, H, W), on any device. uint8, uint16 or floating point in
            [0, 1]; a raw output of a network, in [-1, 2], is clamped where the protocol does.
        truth: a picture of the same size, of any of these kinds.
        protocol: "paper", "rgb", "y_matlab" or "transweather_2021"; see docs/metrics.md.

    Returns:
        Decibels. Infinity if the pictures are the same under this protocol; NaN if one holds NaN.

    Numerics:
        float64, by NumPy on the CPU; repeats bit for bit.

    Raises:
        ValueError: sizes that differ, values far outside [0, 1], an unknown protocol.
        TypeError: no picture.
        PictureError: a file that cannot be read.
    """
    chosen = protocol_named(protocol)
    return _measured(*_both(restored, truth), chosen, with_ssim=False).psnr


def ssim(restored: Any, truth: Any, protocol: str | Protocol = "paper") -> float:
    """How alike a restored picture and the truth are in structure: SSIM, at most 1.

    The mean over all places where the protocol's window lies inside the picture, and over the
    channels; the formula is that of :func:`clipweather_fast.evaluation.similarity.similarity`.

    Args:
        restored: as for :func:`psnr`; at least 7 × 7 pixels, under Gaussian windows 11 × 11.
        truth: the same.
        protocol: as for :func:`psnr`.

    Raises:
        ValueError: as :func:`psnr`, or a picture smaller than the window.
    """
    chosen = protocol_named(protocol)
    return _measured(*_both(restored, truth), chosen).ssim


def score(
    restored: Any, truth: Any, protocols: Iterable[str | Protocol] = ("paper",)
) -> dict[str, Score]:
    """PSNR and SSIM under several protocols, by name; files are read once.

    Args:
        restored: as for :func:`psnr`.
        truth: the same.
        protocols: names.

    Raises:
        As :func:`psnr` and :func:`ssim`.
    """
    chosen = [protocol_named(protocol) for protocol in protocols]
    pictures = _both(restored, truth)
    return {protocol.name: _measured(*pictures, protocol) for protocol in chosen}


def _both(restored: Any, truth: Any) -> tuple[Samples, Samples]:
    a, b = samples_of(restored), samples_of(truth)
    if a.shape != b.shape:
        (h, w), (h2, w2) = a.shape[1:], b.shape[1:]
        raise ValueError(
            f"the restored picture has {w} x {h} pixels and the truth {w2} x {h2}; metrics compare "
            "pictures of one size, and none is resized here"
        )
    return a, b


def _measured(a: Samples, b: Samples, protocol: Protocol, with_ssim: bool = True) -> Score:
    """One pass over both pictures, a strip of rows after the other."""
    side = SIDES[protocol.window] if with_ssim else 1
    height, width = a.shape[1:]
    if min(height, width) < side:
        raise ValueError(
            f"SSIM under the protocol {protocol.name} needs pictures of at least {side} x {side} "
            f"pixels, got {width} x {height}"
        )
    a, b = arranged(a, protocol), arranged(b, protocol)
    rows = max(1, STRIP // width)
    squares: list[float] = []
    alike: list[float] = []
    lowest, channels, last = math.inf, 0, height - side + 1
    for top in range(0, last, rows):
        bottom = min(top + rows, last)
        # A strip sees the rows below that its windows need; its error ends where the next begins.
        x, y = (compared(picture[:, top : bottom + side - 1], protocol) for picture in (a, b))
        own = x.shape[1] if bottom == last else bottom - top
        error = x[:, :own] - y[:, :own]
        squares.append(float(np.sum(np.multiply(error, error, out=error))))
        lowest, channels = min(lowest, float(x.min())), len(x)
        if with_ssim:
            peak = 2.0 if protocol.guessed_range else protocol.peak
            for planes in zip(x, y, strict=True):
                alike.append(float(np.sum(similarity(*planes, peak, protocol.window))))
    peak = 2.0 if protocol.guessed_range and lowest < 0 else protocol.peak
    mean = math.fsum(squares) / (channels * height * width)
    places = channels * last * (width - side + 1)
    return Score(
        protocol.name,
        math.inf if mean == 0 else 10 * math.log10(peak * peak / mean),
        math.fsum(alike) / places if with_ssim else math.nan,
    )
