"""Heavy rain: I = T⊙(J + Σ S_i) + (1 − T)⊙A, with streaks S_i of several layers and haze T, A.

A streak is a drop smeared by its fall during the exposure: thin, straight, semi-transparent and
parallel to its neighbours. Layers far away have many short faint streaks, near ones few long bright
ones, and what is too far to be seen singly is the haze.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clipweather_fast.data.synthesis.haze import Haze, transmission, veiled
from clipweather_fast.data.synthesis.particles import (
    Canvas,
    column,
    counts,
    drawn_particles,
    portions,
)
from clipweather_fast.data.synthesis.random_numbers import Draws, key

__all__ = ["Rain", "StreakLayer", "rained"]

#: Random numbers that a streak needs.
CHANNELS = 6
#: A streak's profile ends at this many standard deviations, also in a batch with wider ones.
PROFILE = 3.0
#: A streak's thickness, relative to its layer's: at least and at most.
THINNEST, THICKEST = 0.8, 1.2
#: Streaks lean by at most this, in radians from straight down, so that each crosses many rows.
MOST_LEAN = 0.75
#: A streak's angle differs from its layer's by at most this, in radians.
SPREAD = 0.03


@dataclass(frozen=True)
class StreakLayer:
    """Streaks at about one distance.

    Attributes:
        density: streaks per 10,000 pixels.
        shortest, longest: pixels.
        thickness: standard deviation of the brightness across a streak, in pixels.
        faintest, brightest: light added in a streak's middle, in [0, 1].
        angle: in radians from straight down, positive to the right.
    """

    density: float
    shortest: float
    longest: float
    thickness: float
    faintest: float
    brightest: float
    angle: float

    def across(self) -> int:
        """Columns from a streak's middle beyond which it adds nothing."""
        return math.ceil(PROFILE * THICKEST * self.thickness / math.cos(_lean(self))) + 1


#: name, streaks per 10,000 pixels (light and heavy), lengths, thickness, brightness
LAYERS = (
    ("far", (15.0, 160.0), (5.0, 16.0), (0.45, 0.7), (0.04, 0.25)),
    ("middle", (4.0, 40.0), (12.0, 38.0), (0.5, 0.9), (0.08, 0.45)),
    ("near", (0.2, 4.5), (30.0, 80.0), (0.7, 1.8), (0.08, 0.5)),
)


@dataclass(frozen=True)
class Rain:
    """One picture's rain.

    Attributes:
        amount: 0 the lightest, 1 the heaviest.
        scale: size of everything, relative to a picture of 480 pixels.
        screen: how far a bright background swallows streaks: 0 they add, 1 they add to what is
            missing to white.
        layers: from far to near.
        haze: of the drops too far away to be seen.
    """

    amount: float
    scale: float
    screen: float
    layers: tuple[StreakLayer, ...]
    haze: Haze

    @classmethod
    def drawn(cls, seed: int, size: tuple[int, int], scale: float, strength: float) -> Rain:
        """The rain of a seed in a picture of ``size``; see ``rain`` for the arguments."""
        draw = Draws(key(seed, "rain"))
        scale *= draw.scaled(0.75, 1.35)
        amount = draw.unit()
        # The sum of three uniform numbers is nearly normal: mostly steep, now and then driven.
        angle = (draw.unit() + draw.unit() + draw.unit() - 1.5) * 0.45
        shutter, glow = draw.between(0.6, 1.5), draw.between(0.7, 1.3)
        layers = []
        for _, density, lengths, thickness, light in LAYERS:
            heavy = min(1.0, max(0.0, amount + draw.between(-0.3, 0.3)))
            low, high = density
            layers.append(
                StreakLayer(
                    density=strength * low * (high / low) ** heavy / scale**2,
                    shortest=lengths[0] * shutter * scale,
                    longest=lengths[1] * shutter * scale,
                    thickness=draw.between(*thickness) * scale,
                    faintest=light[0],
                    brightest=min(1.0, light[1] * glow * draw.between(0.8, 1.2)),
                    angle=angle + draw.between(-0.05, 0.05),
                )
            )
        beta = draw.between(0.4, 1.5) if draw.chance(0.9) else draw.between(0.0, 0.4)
        return cls(
            amount=amount,
            scale=scale,
            screen=draw.unit(),
            layers=tuple(layers),
            haze=Haze.drawn(key(seed, "rain haze"), size, strength * beta, (0.5, 0.98)),
        )


def rained(clean: Tensor, keys: Sequence[int], rains: Sequence[Rain]) -> Tensor:
    """Photographs (N, 3, H, W), float32 in [0, 1], in this rain."""
    hazes = [r.haze for r in rains]
    clear = transmission(clean, hazes)
    scene = clean
    screen = column([r.screen for r in rains], clean.device)[:, :, None, None]
    for number in range(len(LAYERS)):
        layers = [r.layers[number] for r in rains]
        light = _streaks(clean, [key(k, "streaks", number) for k in keys], layers)
        if light is not None:
            scene = scene + light * (1 - screen * clean)
    return veiled(scene.clamp(0, 1), clear, hazes).clamp_(0, 1)


def _streaks(clean: Tensor, keys: Sequence[int], layers: Sequence[StreakLayer]) -> Tensor | None:
    """The light of a layer's streaks, (N, 1, H, W); None if there is no streak."""
    number, _, height, width = clean.shape
    device = clean.device
    half = max(layer.across() for layer in layers)
    tall = math.ceil(max(layer.longest for layer in layers)) + 2
    # A streak begins above the picture and drifts sideways: the area in which one may begin.
    above = [float(math.ceil(layer.longest)) + 2 for layer in layers]
    drift = [a * math.tan(_lean(p)) for a, p in zip(above, layers, strict=True)]
    beside = [float(math.ceil(d)) + p.across() for d, p in zip(drift, layers, strict=True)]
    areas = [(height + a) * (width + 2 * b) for a, b in zip(above, beside, strict=True)]
    numbers = counts([layer.density for layer in layers], areas)
    # Both ends of a streak and its profile stay within this margin.
    margin = max(tall, math.ceil(max(beside) + max(drift)) + half) + 1
    canvas = Canvas((number, height, width), margin, 1, device)
    down = torch.arange(tall, device=device)
    side = torch.arange(-half, half + 1, device=device)
    up, out = column(above, device), column(beside, device)
    streaks = drawn_particles(keys, numbers, CHANNELS, device)
    for drawn, exists in portions(*streaks, tall * len(side)):
        top = drawn[0] * (height + up) - up
        left = drawn[1] * (width + 2 * out) - out
        first = top.floor()
        # How far each of a streak's rows lies below its top.
        below = down - (top - first)[..., None]
        light, aside, narrow = _shapes(drawn[2:], exists, layers, below)
        middle = left[..., None] + aside
        col = middle.floor()
        off = side - (middle - col)[..., None]
        exponent = off.square_().mul_(narrow[..., None, None])
        values = exponent.exp().mul_(exponent >= -0.5 * PROFILE**2).mul_(light[..., None])
        rows = first.long()[..., None] + down
        places = canvas.places(rows.flatten(1), col.long().flatten(1)).view(*rows.shape, 1)
        canvas.add(places + side, values)
    return canvas.planes()[0] if any(numbers) else None


def _shapes(
    drawn: Tensor, exists: Tensor, layers: Sequence[StreakLayer], below: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Streaks' light and drift in each row, both (N, K, L), and −1 / (2σ²) of the row, (N, K)."""
    table = torch.tensor(
        [(p.shortest, p.longest, p.thickness, p.faintest, p.brightest, p.angle) for p in layers],
        dtype=torch.float32,
    ).to(drawn.device)
    shortest, longest, thickness, faint, bright, angle = table[:, :, None].unbind(1)
    length = shortest + (longest - shortest) * drawn[0]
    leaning = (angle + SPREAD * (2 * drawn[1] - 1)).clamp_(-MOST_LEAN, MOST_LEAN)
    cosine = torch.cos(leaning)
    # Faint streaks are more common than bright ones.
    peak = (faint + (bright - faint) * drawn[2].square()) * exists
    along = (below / (length * cosine)[..., None]).clamp_(0, 1)
    taper = (4 * along * (1 - along)).sqrt_()
    aside = along * (length * torch.sin(leaning))[..., None]
    spread = thickness * (THINNEST + (THICKEST - THINNEST) * drawn[3])
    narrow = -0.5 * (cosine / spread).square()
    return taper * peak[..., None], aside, narrow


def _lean(layer: StreakLayer) -> float:
    """The largest angle of a layer's streaks, in radians from straight down."""
    return min(MOST_LEAN, abs(layer.angle) + SPREAD)
