"""Veil and haze: T = exp(-β d), with a depth d that only looks like one.

A photograph does not say how far things are. The proxy knows what most outdoor scenes have in
common: the upper part is far, bright and colourless regions are often sky, and distance varies
smoothly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clipweather_fast.data.synthesis.particles import column
from clipweather_fast.data.synthesis.random_numbers import Draws, key, uniform

__all__ = ["Haze", "clouds", "depth", "transmission", "veiled"]

#: A picture smaller than this is taken for a crop of a larger one.
WHOLE = 320
#: Lattice of the smooth noise: cells across the shorter side of a whole picture.
CELLS = 5
#: The proxy is computed for squares of this many pixels, and interpolated.
COARSE = 8
#: Haze never hides a pixel altogether.
LEAST_TRANSMISSION = 0.05


@dataclass(frozen=True)
class Haze:
    """One picture's haze.

    Attributes:
        beta: optical depth of the farthest point; 0: no haze.
        airlight: colour of the haze, red, green, blue in [0, 1].
        near: depth of the nearest point, as a share of the farthest, in [0, 1].
        slope: share of the depth that grows towards the upper border.
        unevenness: share that varies smoothly at random.
        guidance: share that follows bright, colourless regions.
        top, bottom: where the picture's borders lie in the scene, 0 its top and 1 its bottom.
        noise: key of the smooth noise.
    """

    beta: float
    airlight: tuple[float, float, float]
    near: float
    slope: float
    unevenness: float
    guidance: float
    top: float
    bottom: float
    noise: int

    @classmethod
    def drawn(
        cls, seed: int, size: tuple[int, int], beta: float, light: tuple[float, float]
    ) -> Haze:
        """A haze of optical depth ``beta`` with an airlight of this range of brightness."""
        draw = Draws(key(seed, "haze"))
        gray, tint = draw.between(*light), draw.between(-0.03, 0.03)
        slope, unevenness = draw.between(0.2, 1.0), draw.between(0.05, 0.5)
        guidance = draw.between(0.0, 0.7)
        whole = slope + unevenness + guidance
        top, bottom = 0.0, 1.0
        if min(size) < WHOLE:
            rows = max(draw.between(360, 720), float(size[0]))
            top = draw.unit() * (rows - size[0]) / rows
            bottom = top + size[0] / rows
        return cls(
            beta=beta,
            airlight=(gray - tint, gray, min(1.0, gray + tint)),
            near=draw.between(0.05, 0.95),
            slope=slope / whole,
            unevenness=unevenness / whole,
            guidance=guidance / whole,
            top=top,
            bottom=bottom,
            noise=key(seed, "clouds"),
        )


def depth(clean: Tensor, hazes: Sequence[Haze]) -> Tensor:
    """The proxy (N, 1, H, W) in [0, 1], 1 the farthest.

    Args:
        clean: (N, 3, H, W) in [0, 1].
        hazes: N.
    """
    height, width = clean.shape[2:]
    device = clean.device
    table = [(h.near, h.slope, h.unevenness, h.guidance, h.top, h.bottom) for h in hazes]
    values = torch.tensor(table, dtype=torch.float32).to(device)
    near, slope, unevenness, guidance, top, bottom = values[:, :, None, None, None].unbind(1)
    # All of it is smooth, so it is computed coarsely. Bright and colourless is what has a high
    # minimum of red, green and blue.
    size = max(1, -(-height // COARSE)), max(1, -(-width // COARSE))
    bright = functional.interpolate(clean.amin(dim=1, keepdim=True), size=size, mode="area")
    rows = (torch.arange(size[0], device=device, dtype=torch.float32) + 0.5) / size[0]
    down = top + (bottom - top) * rows.view(1, 1, size[0], 1)
    noise = clouds([h.noise for h in hazes], size, CELLS, device)
    far = slope * (1 - down) + unevenness * noise + guidance * bright
    coarse = near + (1 - near) * far.clamp_(0, 1)
    return functional.interpolate(
        coarse, size=(height, width), mode="bilinear", align_corners=False
    )


def transmission(clean: Tensor, hazes: Sequence[Haze]) -> Tensor:
    """T (N, 1, H, W) in (0, 1], 1 where there is no haze."""
    beta = column([h.beta for h in hazes], clean.device)[:, :, None, None]
    return torch.exp(-beta * depth(clean, hazes)).clamp_(min=LEAST_TRANSMISSION)


def veiled(scene: Tensor, clear: Tensor, hazes: Sequence[Haze]) -> Tensor:
    """T⊙J + (1 − T)⊙A for a scene J (N, 3, H, W) and a transmission T (N, 1, H, W)."""
    airlight = torch.tensor([h.airlight for h in hazes], dtype=torch.float32).to(scene.device)
    airlight = airlight[:, :, None, None]
    # T = 1 must give back the scene bit by bit, which A + T (J - A) would not.
    return scene * clear + airlight * (1 - clear)


def clouds(keys: Sequence[int], size: tuple[int, int], cells: int, device: torch.device) -> Tensor:
    """Smooth noise (N, 1, H, W) in [0, 1], of two octaves.

    Args:
        keys: N.
        size: (H, W).
        cells: of the coarser lattice, across the shorter side.
    """
    total = torch.zeros(len(keys), 1, *size, dtype=torch.float32, device=device)
    for octave, share in ((1, 0.65), (2, 0.35)):
        step = min(size) / (cells * octave)
        rows, columns = (min(64, int(side / step) + 2) for side in size)
        salted = [k ^ octave for k in keys]
        lattice = uniform(salted, 1, rows * columns, device).view(len(keys), 1, rows, columns)
        layer = functional.interpolate(lattice, size=size, mode="bicubic", align_corners=True)
        total.add_(layer, alpha=share)
    return total.clamp_(0, 1)
