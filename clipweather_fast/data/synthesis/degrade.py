"""Bad weather on good photographs, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from clipweather_fast.clip.text import WEATHERS
from clipweather_fast.data.synthesis.rain import Rain, rained
from clipweather_fast.data.synthesis.raindrops import Raindrops, spattered
from clipweather_fast.data.synthesis.random_numbers import key
from clipweather_fast.data.synthesis.snow import Snow, fallen

__all__ = ["WEATHERS", "Weather", "degrade", "parameters", "rain", "raindrops", "snow"]

#: What was drawn for one picture.
Weather: TypeAlias = Snow | Rain | Raindrops

_KINDS: dict[str, type[Weather]] = {"snow": Snow, "rain": Rain, "raindrop": Raindrops}
_RENDERERS: dict[str, Callable[[Tensor, Sequence[int], Any], Tensor]] = {
    "snow": fallen,
    "rain": rained,
    "raindrop": spattered,
}

#: Shorter side of the pictures for which the sizes of flakes, streaks and drops are stated.
REFERENCE_SIDE = 480
#: Beyond this, larger pictures get more flakes instead of larger ones.
MOST_SCALE = 4.0


def degrade(
    clean: Tensor,
    weather: Tensor | Sequence[int] | Sequence[str],
    seeds: Tensor | Sequence[int],
    *,
    strength: float | Tensor | Sequence[float] = 1.0,
    scale: float | None = None,
) -> Tensor:
    """Photographs as they would look in snow, in rain with haze or through raindrops.

    Each picture's weather is a function of its seed, its size and its content, whatever else is in
    the batch: on the CPU bit by bit, between devices within float32's rounding. What a seed draws
    spans light to heavy. A picture with a side below 320 pixels is taken for a crop of a larger
    one, so that haze varies over it as over a part of a scene.

    Args:
        clean: (N, 3, H, W) in [0, 1], any floating dtype, on any device; any size from 1 × 1.
        weather: (N,), numbers of ``WEATHERS`` or names; -1 or "clear" leaves a picture as it is.
        seeds: (N,), any integers. Both best on the CPU: reading them waits for the GPU otherwise.
        strength: how many flakes, streaks or drops there are and how dense the haze is, relative to
            what the seed draws; one number or one per picture. 0 leaves the picture as it is.
        scale: size of flakes, streaks and drops, relative to a picture whose shorter side has 480
            pixels. None: the shorter side over 480, between 1 and 4.

    Returns:
        (N, 3, H, W) in [0, 1], in the dtype of ``clean`` (computed in float32), a new tensor.
        There are no gradients.

    Raises:
        ValueError: a shape, a weather, a strength or the scale is not as above.
        TypeError: ``clean`` does not hold floating-point numbers.
    """
    names, numbers = _names(weather), _integers(seeds)
    strengths = _strengths(strength, len(clean))
    _check(clean, names, numbers, scale)
    seen = clean.detach().clone()
    size = int(clean.shape[2]), int(clean.shape[3])
    if clean.numel() == 0:
        return seen
    with torch.no_grad():
        for name in WEATHERS:
            chosen = [n for n, other in enumerate(names) if other == name]
            if not chosen:
                continue
            # A GPU takes all at once. A processor is faster with patches as small as each picture's
            # particles need, so it takes them one by one.
            alone = clean.device.type == "cpu"
            for group in [[n] for n in chosen] if alone else [chosen]:
                drawn = [_drawn(name, numbers[n], size, strengths[n], scale) for n in group]
                keys = [key(numbers[n], name) for n in group]
                index = torch.tensor(group).to(clean.device)
                pictures = _RENDERERS[name](clean[index].float(), keys, drawn)
                seen[index] = pictures.to(clean.dtype)
    return seen


def snow(
    clean: Tensor,
    seeds: Tensor | Sequence[int],
    *,
    strength: float | Tensor | Sequence[float] = 1.0,
    scale: float | None = None,
) -> Tensor:
    """Photographs in falling snow, I = (1 − α)⊙(T⊙J + (1 − T)⊙A) + α⊙F; see :func:`degrade`."""
    return degrade(clean, ["snow"] * len(clean), seeds, strength=strength, scale=scale)


def rain(
    clean: Tensor,
    seeds: Tensor | Sequence[int],
    *,
    strength: float | Tensor | Sequence[float] = 1.0,
    scale: float | None = None,
) -> Tensor:
    """Photographs in rain and its haze, I = T⊙(J + Σ S_i) + (1 − T)⊙A; see :func:`degrade`."""
    return degrade(clean, ["rain"] * len(clean), seeds, strength=strength, scale=scale)


def raindrops(
    clean: Tensor,
    seeds: Tensor | Sequence[int],
    *,
    strength: float | Tensor | Sequence[float] = 1.0,
    scale: float | None = None,
) -> Tensor:
    """Photographs through drops on a pane, I = (1 − M)⊙J + R; see :func:`degrade`."""
    return degrade(clean, ["raindrop"] * len(clean), seeds, strength=strength, scale=scale)


def parameters(
    weather: str,
    seed: int,
    size: tuple[int, int],
    *,
    strength: float = 1.0,
    scale: float | None = None,
) -> Weather:
    """What :func:`degrade` draws for a picture of ``size`` (H, W): a frozen dataclass of numbers.

    Raises:
        ValueError: ``weather`` is none of ``WEATHERS``.
    """
    if weather not in _KINDS:
        raise ValueError(f"parameters: weather must be one of {WEATHERS}, got {weather!r}")
    return _drawn(weather, seed, size, strength, scale)


def _drawn(
    weather: str, seed: int, size: tuple[int, int], strength: float, scale: float | None
) -> Weather:
    if scale is None:
        scale = min(MOST_SCALE, max(1.0, min(size) / REFERENCE_SIDE))
    return _KINDS[weather].drawn(seed, size, scale, strength)


def _names(weather: Tensor | Sequence[int] | Sequence[str]) -> list[str]:
    values = weather.tolist() if isinstance(weather, Tensor) else list(weather)
    names = []
    for value in values:
        if isinstance(value, int) and -1 <= value < len(WEATHERS):
            value = WEATHERS[value] if value >= 0 else "clear"
        if value not in (*WEATHERS, "clear"):
            raise ValueError(
                f"degrade: a weather must be one of {WEATHERS}, its number, 'clear' or -1, "
                f"got {value!r}"
            )
        names.append(value)
    return names


def _integers(seeds: Tensor | Sequence[int]) -> list[int]:
    if isinstance(seeds, Tensor) and (seeds.is_floating_point() or seeds.is_complex()):
        raise TypeError(f"degrade: seeds must be integers, got {seeds.dtype}")
    return [int(s) for s in (seeds.tolist() if isinstance(seeds, Tensor) else seeds)]


def _strengths(strength: float | Tensor | Sequence[float], number: int) -> list[float]:
    if isinstance(strength, Tensor):
        strength = strength.tolist()
    values = list(strength) if isinstance(strength, Sequence) else [float(strength)] * number
    if len(values) != number or not all(0 <= value <= 100 for value in values):
        raise ValueError(
            f"degrade: strength must be a number from 0 to 100, or {number} of them, "
            f"got {strength!r}"
        )
    return values


def _check(clean: Tensor, names: list[str], seeds: list[int], scale: float | None) -> None:
    if clean.ndim != 4 or clean.shape[1] != 3:
        raise ValueError(f"degrade: clean must be (N, 3, H, W), got {tuple(clean.shape)}")
    if not clean.is_floating_point():
        raise TypeError(
            f"degrade: clean must hold floating-point numbers in [0, 1], got {clean.dtype}"
        )
    for what, values in (("weather", names), ("seeds", seeds)):
        if len(values) != len(clean):
            raise ValueError(
                f"degrade: {what} must have one value for each of {len(clean)} pictures, "
                f"got {len(values)}"
            )
    if scale is not None and not 0.05 <= scale <= 20:
        raise ValueError(f"degrade: scale must be from 0.05 to 20, got {scale}")
