"""Drops on the pane before the lens: I = (1 − M)⊙J + R.

Each drop is a small wide-angle lens: it shows a large part of the scene upside down and minified,
with a bright rim where it catches light and a dark one where it looks sideways. The camera is
focused on the scene, so what the drop shows is blurred and its outline M is soft.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from clipweather_fast.data.synthesis.particles import Number, Portion, column, radii, scattered
from clipweather_fast.data.synthesis.random_numbers import Draws, key

__all__ = ["DropLayer", "Raindrops", "spattered"]

#: Random numbers that a drop needs.
CHANNELS = 6
#: What drops show is read from a picture averaged over squares of this side, in pixels.
BLUR = 8
#: Sums over a pixel's drops: weight, where they look (row, column), shade, added light.
PLANES = 5


@dataclass(frozen=True)
class DropLayer:
    """Drops of about one size.

    Attributes:
        density: drops per 10,000 pixels.
        smallest, largest: radii, in pixels.
        softness: width of the edge, in pixels.
        tallest: height of the longest drops over their width, at least 1.
        raggedness: by how much the outline departs from an ellipse, in radii.
    """

    density: float
    smallest: float
    largest: float
    softness: float
    tallest: float
    raggedness: float

    def reach(self, radius: Number) -> Number:
        """Pixels from a drop's middle beyond which there is nothing of it."""
        return radius * (self.tallest * (1 + 2 * self.raggedness)) + self.softness / 2 + 1


#: name, drops per 10,000 pixels (light and heavy), radii, height over width at most
LAYERS = (
    ("spray", (1.5, 20.0), (1.3, 3.5), 1.7),
    ("small", (1.5, 9.0), (3.5, 9.0), 1.7),
    ("middle", (0.7, 3.0), (8.0, 17.0), 1.6),
    ("large", (0.1, 0.6), (16.0, 34.0), 1.4),
)


@dataclass(frozen=True)
class Raindrops:
    """One picture's drops.

    Attributes:
        amount: 0 the fewest, 1 the most.
        scale: size of everything, relative to a picture of 480 pixels.
        opacity: of the drops' middles, in [0, 1].
        view: pixels of the scene that a drop shows beyond its middle, at its edge.
        blur: 0 a drop shows averages over 8 pixels, 1 over 32.
        gain: brightness of what a drop shows.
        rim: how far the upper edge is darkened, in [0, 1].
        light: what the lower edge adds, in [0, 1].
        layers: small to large.
    """

    amount: float
    scale: float
    opacity: float
    view: float
    blur: float
    gain: float
    rim: float
    light: float
    layers: tuple[DropLayer, ...]

    @classmethod
    def drawn(cls, seed: int, size: tuple[int, int], scale: float, strength: float) -> Raindrops:
        """The drops of a seed in a picture of ``size``; see ``raindrops`` for the arguments."""
        draw = Draws(key(seed, "raindrops"))
        scale *= draw.scaled(0.75, 1.35)
        amount = draw.unit()
        focus = draw.scaled(0.8, 7.0) * scale
        layers = []
        for _, density, sizes, tallest in LAYERS:
            heavy = min(1.0, max(0.0, amount + draw.between(-0.35, 0.35)))
            low, high = density
            layers.append(
                DropLayer(
                    density=strength * low * (high / low) ** heavy / scale**2,
                    smallest=sizes[0] * scale,
                    largest=sizes[1] * scale,
                    softness=focus,
                    tallest=draw.between(1.05, tallest),
                    raggedness=draw.between(0.0, 0.14),
                )
            )
        return cls(
            amount=amount,
            scale=scale,
            opacity=draw.between(0.8, 1.0),
            view=draw.scaled(20.0, 260.0) * scale,
            blur=draw.unit(),
            gain=draw.between(0.7, 1.25),
            rim=draw.between(0.0, 0.75),
            light=draw.between(0.0, 0.45),
            layers=tuple(layers),
        )


def spattered(clean: Tensor, keys: Sequence[int], drops: Sequence[Raindrops]) -> Tensor:
    """Photographs (N, 3, H, W), float32 in [0, 1], through these drops."""
    seen = clean
    blurred: Tensor | None = None
    for number in range(len(LAYERS)):
        sums = _lenses(clean, [key(k, "drops", number) for k in keys], drops, number)
        if sums is None:
            continue
        if blurred is None:
            blurred = _blurred(clean, drops)
        weight, *shares = sums
        # Where drops touch, each pixel sees their average: they run into one.
        rows, columns, shade, light = (share / weight.clamp(min=1e-6) for share in shares)
        opacity = column([d.opacity for d in drops], clean.device)[:, :, None, None]
        mask = weight.clamp(max=1) * opacity
        shown = _looked_up(blurred, rows, columns, clean.shape[2:])
        drop = (shown * shade + light).clamp_(0, 1)
        seen = seen * (1 - mask) + drop * mask
    return seen.clamp(0, 1)


def _lenses(
    clean: Tensor, keys: Sequence[int], drops: Sequence[Raindrops], layer: int
) -> list[Tensor] | None:
    """The :data:`PLANES` of a layer's drops, each (N, 1, H, W); None if there is no drop."""
    found = scattered(clean, keys, [d.layers[layer] for d in drops], CHANNELS, PLANES)
    if found is None:
        return None
    canvas, portions = found
    for some in portions:
        weight, look, shade, light = _optics(some, drops, layer)
        # Upside down and mirrored: what lies above is seen below.
        rows = (some.y[..., None, None] - look * some.dy) * weight
        columns = (some.x[..., None, None] - look * some.dx) * weight
        canvas.add(some.places, weight, rows, columns, shade * weight, light * weight)
    return canvas.planes()


def _optics(
    some: Portion, drops: Sequence[Raindrops], layer: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Weight, minification, shade and light, (N, K, P, P), at distances from drops' middles."""
    drawn = some.drawn
    layers = [d.layers[layer] for d in drops]
    table = torch.tensor(
        [
            (p.softness, p.tallest, p.raggedness, d.view, d.gain, d.rim, d.light)
            for d, p in zip(drops, layers, strict=True)
        ],
        dtype=torch.float32,
    ).to(drawn.device)
    soft, tall, ragged, view, gain, rim, glow = table[:, :, None].unbind(1)
    radius = radii(layers, drawn[0])
    height = 1 + (tall - 1) * drawn[1].square()
    lobes = 2 * math.pi * drawn[2]
    two = (ragged * torch.cos(lobes))[..., None, None]
    three = (ragged * torch.sin(lobes)).abs()[..., None, None]
    # In radii, from the middle: 1 at the edge.
    across = some.dx / radius[..., None, None]
    down = some.dy / (radius * height)[..., None, None]
    distance = (across.square() + down.square()).sqrt_()
    sine = down / distance.clamp(min=1e-3)
    # cos 2θ flattens or stretches, sin 3θ makes a drop narrow above and wide below.
    outline = 1 + two * (1 - 2 * sine.square()) + three * sine * (3 - 4 * sine.square())
    relative = (distance / outline).clamp_(max=2)
    edge = (torch.minimum(soft, 1.2 * radius) / radius)[..., None, None]
    inside = ((1 + edge / 2 - relative) / edge).clamp_(0, 1)
    weight = inside.square().mul_(3 - 2 * inside).mul_(some.exists[..., None, None])
    # A sphere bends more towards its edge.
    bend = (0.6 + 0.4 * relative.square()) * (0.7 + 0.6 * drawn[3])[..., None, None]
    look = bend * (view / radius)[..., None, None]
    steep = relative.square().square().clamp_(max=1)
    shade = gain[..., None, None] * (1 - rim[..., None, None] * steep * (0.6 - 0.4 * sine))
    crescent = steep * (0.5 + 0.5 * sine).square()
    light = (glow * (0.4 + 0.6 * drawn[4]))[..., None, None] * crescent
    return weight, look, shade, light


def _blurred(clean: Tensor, drops: Sequence[Raindrops]) -> Tensor:
    """What drops show, averaged over squares of BLUR pixels or more, (N, 3, H / BLUR, W / BLUR)."""
    height, width = clean.shape[2:]
    fine = max(1, height // BLUR), max(1, width // BLUR)
    sharp = functional.interpolate(clean, size=fine, mode="area")
    size = max(1, fine[0] // 4), max(1, fine[1] // 4)
    soft = functional.interpolate(sharp, size=size, mode="area")
    soft = functional.interpolate(soft, size=fine, mode="bilinear", align_corners=False)
    share = column([d.blur for d in drops], clean.device)[:, :, None, None]
    return sharp * (1 - share) + soft * share


def _looked_up(picture: Tensor, rows: Tensor, columns: Tensor, size: Sequence[int]) -> Tensor:
    """The picture at pixel coordinates (N, 1, H, W) of a picture of ``size``, mirrored outside."""
    height, width = size
    grid = torch.cat([(2 * columns + 1) / width - 1, (2 * rows + 1) / height - 1], dim=1)
    return functional.grid_sample(
        picture,
        grid.permute(0, 2, 3, 1),
        mode="bilinear",
        padding_mode="reflection",
        align_corners=False,
    )
