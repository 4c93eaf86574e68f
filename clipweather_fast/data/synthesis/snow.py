"""Falling snow: I = (1 − α)⊙(T⊙J + (1 − T)⊙A) + α⊙F, layer over layer from far to near.

Flakes far away are many, small and sharp; flakes near the lens are few, large, out of focus and
smeared by their motion during the exposure. Light passes through all that lie before a pixel:
α = 1 − exp(−Σ τ) over the flakes of a layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipweather_fast.data.synthesis.haze import Haze, transmission, veiled
from clipweather_fast.data.synthesis.particles import (
    Number,
    Portion,
    column,
    radii,
    scattered,
)
from clipweather_fast.data.synthesis.random_numbers import Draws, key

__all__ = ["FlakeLayer", "Snow", "fallen"]

#: Random numbers that a flake needs.
CHANNELS = 6
#: A flake's opacity at most, so that its optical depth stays finite.
MOST_OPACITY = 0.99


@dataclass(frozen=True)
class FlakeLayer:
    """Flakes at about one distance.

    Attributes:
        density: flakes per 10,000 pixels.
        smallest, largest: radii, in pixels.
        softness: width of the edge in radii, 2 for a flake that has nothing but an edge.
        faintest, densest: opacities in the middle of a flake at rest, in [0, 1].
        path: way during the exposure, in radii.
        angle: direction of the way, in radians from straight down.
        raggedness: by how much the outline departs from a circle, in radii.
        brightness: of the flakes, in [0, 1].
    """

    density: float
    smallest: float
    largest: float
    softness: float
    faintest: float
    densest: float
    path: float
    angle: float
    raggedness: float
    brightness: float

    def reach(self, radius: Number) -> Number:
        """Pixels from a flake's middle beyond which it is transparent."""
        edge = 1 + self.softness / 2 + 2 * self.raggedness
        return radius * (edge + self.path * MOST_PATH / 2) + 1


#: A flake's way, relative to that of its layer: at least and at most.
LEAST_PATH, MOST_PATH = 0.5, 1.3
#: name, flakes per 10,000 pixels (light and heavy), radii, opacities
LAYERS = (
    ("dust", (15.0, 240.0), (0.5, 1.2), (0.25, 0.95)),
    ("small", (5.0, 70.0), (1.2, 2.8), (0.35, 0.97)),
    ("large", (1.0, 14.0), (2.6, 6.5), (0.35, 0.95)),
    ("near", (0.05, 1.5), (6.0, 18.0), (0.12, 0.65)),
)


@dataclass(frozen=True)
class Snow:
    """One picture's snow.

    Attributes:
        amount: 0 the lightest, 1 the heaviest.
        scale: size of everything, relative to a picture of 480 pixels.
        tint: blue minus red of the flakes.
        layers: from far to near.
        haze: the veil of the flakes too far away to be seen.
    """

    amount: float
    scale: float
    tint: float
    layers: tuple[FlakeLayer, ...]
    haze: Haze

    @classmethod
    def drawn(cls, seed: int, size: tuple[int, int], scale: float, strength: float) -> Snow:
        """The snow of a seed in a picture of ``size``; see ``snow`` for the arguments."""
        draw = Draws(key(seed, "snow"))
        scale *= draw.scaled(0.75, 1.35)
        amount = draw.unit()
        angle, motion = draw.between(-1.0, 1.0), draw.unit()
        hard, white = draw.unit(), draw.between(0.78, 1.0)
        layers = []
        for number, (_, density, sizes, opacities) in enumerate(LAYERS):
            # Each layer departs from the picture's amount: powder, or few large flakes.
            heavy = min(1.0, max(0.0, amount + draw.between(-0.35, 0.35)))
            low, high = density
            near = number / (len(LAYERS) - 1)
            softness = 0.3 + 1.7 * (1 - hard) * draw.unit() + 0.5 * near
            layers.append(
                FlakeLayer(
                    density=strength * low * (high / low) ** heavy / scale**2,
                    smallest=sizes[0] * scale,
                    largest=sizes[1] * scale,
                    softness=min(2.0, softness),
                    faintest=opacities[0],
                    densest=opacities[1] * draw.between(0.75, 1.0),
                    path=(1.6 + 1.2 * near) * motion**2 * draw.between(0.6, 1.4),
                    angle=angle + draw.between(-0.25, 0.25),
                    raggedness=0.18 * draw.unit() if number > 0 else 0.0,
                    brightness=min(1.0, white * draw.between(0.92, 1.06)),
                )
            )
        veil = draw.chance(0.7) * draw.unit() ** 2 * 0.8
        return cls(
            amount=amount,
            scale=scale,
            tint=draw.between(-0.01, 0.04),
            layers=tuple(layers),
            haze=Haze.drawn(key(seed, "snow veil"), size, strength * veil, (0.65, 0.95)),
        )


def fallen(clean: Tensor, keys: Sequence[int], snows: Sequence[Snow]) -> Tensor:
    """Photographs (N, 3, H, W), float32 in [0, 1], in this snow."""
    seen = veiled(clean, transmission(clean, [s.haze for s in snows]), [s.haze for s in snows])
    tint = column([s.tint for s in snows], clean.device)
    hue = torch.cat([-tint / 2, torch.zeros_like(tint), tint / 2], dim=1)
    for number in range(len(LAYERS)):
        layers = [s.layers[number] for s in snows]
        depth = _optical_depth(clean, [key(k, "flakes", number) for k in keys], layers)
        if depth is None:
            continue
        clear = torch.exp(-depth)
        white = column([layer.brightness for layer in layers], clean.device)
        colour = (white + hue).clamp_(0, 1)[:, :, None, None]
        seen = seen * clear + colour * (1 - clear)
    return seen.clamp_(0, 1)


def _optical_depth(
    clean: Tensor, keys: Sequence[int], layers: Sequence[FlakeLayer]
) -> Tensor | None:
    """Σ τ over a layer's flakes, (N, 1, H, W); None if there is no flake."""
    found = scattered(clean, keys, layers, CHANNELS, 1)
    if found is None:
        return None
    canvas, portions = found
    for some in portions:
        canvas.add(some.places, _flakes(some, layers))
    return canvas.planes()[0]


def _flakes(some: Portion, layers: Sequence[FlakeLayer]) -> Tensor:
    """Optical depths of flakes, (N, K, P, P)."""
    drawn, device = some.drawn, some.drawn.device
    table = torch.tensor(
        [(p.softness, p.faintest, p.densest, p.path, p.angle, p.raggedness) for p in layers],
        dtype=torch.float32,
    ).to(device)
    soft, faint, dense, path, angle, ragged = table[:, :, None].unbind(1)
    radius = radii(layers, drawn[0])
    half_way = radius * path * (LEAST_PATH + (MOST_PATH - LEAST_PATH) * drawn[1]) / 2
    direction = angle + (drawn[2] - 0.5) * 0.5
    # A smeared flake hides each pixel for a part of the exposure only.
    opacity = (faint + (dense - faint) * drawn[3]) / (1 + half_way / (1.5 * radius))
    peak = -torch.log1p(-opacity.clamp(max=MOST_OPACITY)) * some.exists
    way_y, way_x = torch.cos(direction), torch.sin(direction)
    dy, dx = some.dy, some.dx
    if any(layer.path > 0 for layer in layers):
        along = (dy * way_y[..., None, None]).add(dx * way_x[..., None, None])
        limit = half_way[..., None, None]
        along = torch.maximum(torch.minimum(along, limit), -limit)
        dy = dy - along * way_y[..., None, None]
        dx = dx - along * way_x[..., None, None]
    squared = dy.square() + dx.square()
    distance = squared.sqrt()
    edge = (radius * soft).clamp(min=1.0)  # a sharper one would show the pixels' raster
    outline = radius + edge / 2
    if any(layer.raggedness > 0 for layer in layers):
        # Two and three lobes of random phase: cos 2θ, sin 2θ and cos 3θ of the direction.
        phase = 2 * math.pi * drawn[4]
        two, both = (ragged * torch.cos(phase))[..., None, None], (ragged * torch.sin(phase))
        three = (ragged * (2 * drawn[5] - 1))[..., None, None]
        inverse = 1 / distance.clamp(min=1e-3)
        cosine, sine = dx * inverse, dy * inverse
        lobes = two * (2 * cosine.square() - 1) + (2 * both)[..., None, None] * sine * cosine
        lobes = lobes + three * cosine * (4 * cosine.square() - 3)
        distance = distance - lobes * radius[..., None, None]
    inside = ((outline[..., None, None] - distance) / edge[..., None, None]).clamp_(0, 1)
    return inside.square().mul_(3 - 2 * inside).mul_(peak[..., None, None])
