"""Drops on the pane before the lens: I = (1 − M)⊙J + R.

Each drop is a small wide-angle lens: it shows a large part of the scene upside down and minified,
with a bright rim where it catches light and a dark one where it looks sideways. The camera is
focused on the scene, so each point of the pane is spread over a disc that is about as wide there as
the lens's opening: what the drop shows is blurred, and M is the drop's shape averaged over that
disc. A drop smaller than the disc is a faint spot, as large as the disc; a large one has a wide
soft edge.
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
#: What drops show is read from pictures averaged over squares of these sides, in pixels.
BLURS = 8, 32, 128
#: Means over a drop of its rim's darkness and of its crescent's light, each at most 1.
RIM, CRESCENT = 0.2, 0.125
#: Sums over a pixel's drops: weight, where they look (row, column), shade, added light.
PLANES = 5


@dataclass(frozen=True)
class DropLayer:
    """Drops of about one size.

    Attributes:
        density: drops per 10,000 pixels.
        smallest, largest: radii, in pixels.
        defocus: radius of the disc over which a point of the pane is spread, in pixels.
        tallest: height of the longest drops over their width, at least 1.
        raggedness: by how much the outline departs from an ellipse, in radii.
    """

    density: float
    smallest: float
    largest: float
    defocus: float
    tallest: float
    raggedness: float

    def reach(self, radius: Number) -> Number:
        """Pixels from a drop's middle beyond which there is nothing of it."""
        return (radius + self.defocus) * (self.tallest * (1 + 2 * self.raggedness)) + 1


#: Pixels per millimetre of the pane, in a picture of 480 pixels that shows 7 centimetres of it.
PER_MILLIMETRE = 6.7
#: Millimetres of lenses' openings: a telephone's or a car's camera to a large one stopped down.
OPENINGS = 0.75, 3.0
#: name, drops per 10,000 pixels (light and heavy), radii, height over width at most: drops of
#: 0.2 to 5 millimetres.
LAYERS = (
    ("spray", (1.5, 20.0), (1.3, 3.5), 1.7),
    ("small", (1.8, 10.5), (3.5, 9.0), 1.7),
    ("middle", (0.9, 3.6), (8.0, 17.0), 1.6),
    ("large", (0.13, 0.72), (16.0, 34.0), 1.4),
)


@dataclass(frozen=True)
class Raindrops:
    """One picture's drops.

    Attributes:
        amount: 0 the fewest, 1 the most.
        scale: size of everything, relative to a picture of 480 pixels.
        opacity: of the drops' middles, in [0, 1].
        view: pixels of the scene that a drop shows beyond its middle, at its edge.
        gain: brightness of what a drop shows.
        rim: how far the upper edge is darkened, in [0, 1].
        light: what the lower edge adds, in [0, 1].
        layers: small to large.
    """

    amount: float
    scale: float
    opacity: float
    view: float
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
        defocus = draw.scaled(*OPENINGS) / 2 * PER_MILLIMETRE * scale
        layers = []
        for _, density, sizes, tallest in LAYERS:
            heavy = min(1.0, max(0.0, amount + draw.between(-0.35, 0.35)))
            low, high = density
            layers.append(
                DropLayer(
                    density=strength * low * (high / low) ** heavy / scale**2,
                    smallest=sizes[0] * scale,
                    largest=sizes[1] * scale,
                    defocus=defocus,
                    tallest=draw.between(1.05, tallest),
                    raggedness=draw.between(0.0, 0.14),
                )
            )
        return cls(
            amount=amount,
            scale=scale,
            opacity=draw.between(0.8, 1.0),
            view=draw.scaled(20.0, 260.0) * scale,
            gain=draw.between(0.7, 1.25),
            rim=draw.between(0.0, 0.75),
            light=draw.between(0.0, 0.45),
            layers=tuple(layers),
        )


def spattered(clean: Tensor, keys: Sequence[int], drops: Sequence[Raindrops]) -> Tensor:
    """Photographs (N, 3, H, W), float32 in [0, 1], through these drops."""
    seen = clean
    blurred: list[Tensor] = []
    for number in range(len(LAYERS)):
        sums = _lenses(clean, [key(k, "drops", number) for k in keys], drops, number)
        if sums is None:
            continue
        if not blurred:
            blurred = _blurred(clean)
        weight, *shares = sums
        # Where drops touch, each pixel sees their average: they run into one.
        rows, columns, shade, light = (share / weight.clamp(min=1e-6) for share in shares)
        opacity = column([d.opacity for d in drops], clean.device)[:, :, None, None]
        mask = weight.clamp(max=1) * opacity
        shown = _looked_up(_seen(blurred, drops, number), rows, columns, clean.shape[2:])
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
            (p.defocus, p.tallest, p.raggedness, d.view, d.gain, d.rim, d.light)
            for d, p in zip(drops, layers, strict=True)
        ],
        dtype=torch.float32,
    ).to(drawn.device)
    defocus, tall, ragged, view, gain, rim, glow = table[:, :, None].unbind(1)
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
    relative = distance / outline
    # A disc of one radius averaged over one of another: all of the smaller one's share of the
    # larger as long as one lies within the other, nothing once they are apart.
    spread = (defocus / radius)[..., None, None]
    inside = ((1 + spread - relative) / (2 * spread.clamp(max=1))).clamp_(0, 1)
    opaque = spread.clamp(min=1).pow(-2) * some.exists[..., None, None]
    weight = inside.square().mul_(3 - 2 * inside).mul_(opaque)
    relative = relative.clamp_(max=1)
    # A sphere bends more towards its edge.
    bend = (0.6 + 0.4 * relative.square()) * (0.7 + 0.6 * drawn[3])[..., None, None]
    look = bend * (view / (radius + defocus))[..., None, None]
    steep = relative.square().square()
    # The disc blurs rim and crescent towards their means over the drop.
    sharp = 1 / (1 + spread)
    dark = RIM + (steep * (0.6 - 0.4 * sine) - RIM) * sharp
    shade = gain[..., None, None] * (1 - rim[..., None, None] * dark)
    crescent = CRESCENT + (steep * (0.5 + 0.5 * sine).square() - CRESCENT) * sharp
    light = (glow * (0.4 + 0.6 * drawn[4]))[..., None, None] * crescent
    return weight, look, shade, light


def _blurred(clean: Tensor) -> list[Tensor]:
    """The scene averaged over squares of each of BLURS, all (N, 3, H / 8, W / 8)."""
    sizes = [[max(1, length // side) for length in clean.shape[2:]] for side in BLURS]
    levels = [functional.interpolate(clean, size=sizes[0], mode="area")]
    for size in sizes[1:]:
        small = functional.interpolate(levels[0], size=size, mode="area")
        large = functional.interpolate(small, size=sizes[0], mode="bilinear", align_corners=False)
        levels.append(large)
    return levels


def _seen(blurred: Sequence[Tensor], drops: Sequence[Raindrops], layer: int) -> Tensor:
    """The scene as a layer's drops show it, averaged over the disc as large as they minify it."""
    levels = []
    for d in drops:
        some = d.layers[layer]
        radius = math.sqrt(some.smallest * some.largest)
        side = 2 * some.defocus * max(1.0, d.view / radius)
        level = math.log(side / BLURS[0], BLURS[1] / BLURS[0])
        levels.append(min(len(BLURS) - 1.0, max(0.0, level)))
    share = column(levels, blurred[0].device)[:, :, None, None]
    seen = blurred[0]
    for number in range(1, len(blurred)):
        seen = torch.lerp(seen, blurred[number], (share - (number - 1)).clamp(0, 1))
    return seen


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
