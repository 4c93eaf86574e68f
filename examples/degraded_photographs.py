"""Photographs as they might have been taken in bad weather, for demonstrations and tests.

    python examples/degraded_photographs.py FOLDER [PHOTOGRAPH ...]

writes of each photograph the picture itself, <name>.png, and <name>_snow.png, <name>_rain.png,
<name>_haze.png and <name>_drops.png. Without photographs: coffee.jpg beside this file, and those
that scikit-image and scikit-learn bring if they are installed. A few lines per weather, to have
something to look at: no network is trained or judged on these.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: (H, W, 3), float32, in [0, 1].
Photograph = NDArray[np.float32]

BROUGHT = {
    "skimage": ["data/astronaut.png", "data/chelsea.png", "data/rocket.jpg"],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}


def snow(photograph: Photograph, generator: np.random.Generator) -> Photograph:
    """Flakes: soft white discs, few large and many small."""
    height, width = photograph.shape[:2]
    cover = np.zeros((height, width), np.float32)
    for _ in range(height * width // 400):
        radius = generator.gamma(2.0, 0.9) + 0.5
        y, x = generator.uniform(0, height), generator.uniform(0, width)
        rows, columns, distance = _disc(height, width, y, x, 2 * radius)
        flake = generator.uniform(0.3, 1) * np.exp(-((distance / radius) ** 2))
        cover[rows, columns] = np.maximum(cover[rows, columns], flake)
    return photograph * (1 - cover[..., None]) + cover[..., None]


def rain(photograph: Photograph, generator: np.random.Generator) -> Photograph:
    """Streaks: sparse points smeared along one direction, before a thin veil."""
    height, width = photograph.shape[:2]
    points = (generator.random((height, width)) > 0.985) * generator.random((height, width))
    length, slant = 19, generator.uniform(-0.4, 0.4)
    shifts = [(i, round(slant * i)) for i in range(length)]
    streaks = sum(np.roll(points, shift, (0, 1)) for shift in shifts) * (2.5 / length)
    veiled = 0.88 * photograph + 0.08
    return _in_range(veiled + np.clip(streaks, 0, 0.7)[..., None] * (1 - veiled))


def haze(photograph: Photograph, generator: np.random.Generator) -> Photograph:
    """J·t + A·(1 - t), with t falling towards the upper border, which is taken for far away."""
    height, width = photograph.shape[:2]
    coarse = Image.fromarray(generator.random((6, 8), np.float32))
    clouds = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    depth = np.linspace(1, 0.25, height, dtype=np.float32)[:, None] + 0.3 * clouds
    t = np.exp(-0.9 * depth)[..., None]
    return _in_range(photograph * t + generator.uniform(0.75, 0.95) * (1 - t))


def drops(photograph: Photograph, generator: np.random.Generator) -> Photograph:
    """Drops on the pane: small lenses that show the scene upside down, blurred."""
    height, width = photograph.shape[:2]
    seen = photograph.copy()
    small = Image.fromarray((photograph * 255).astype(np.uint8))
    small = small.resize((max(1, width // 6), max(1, height // 6))).resize((width, height))
    blurred = np.asarray(small, np.float32) / 255
    for _ in range(25):
        radius = generator.uniform(0.01, 0.05) * max(height, width)
        y, x = generator.uniform(0, height), generator.uniform(0, width)
        rows, columns, distance = _disc(height, width, y, x, radius)
        inside = np.clip((radius - distance) / (0.15 * radius + 1), 0, 1)[..., None]
        # Behind a drop of radius r lies six times its surroundings, mirrored at its middle.
        source_y = np.clip(y - 6 * (np.arange(rows.start, rows.stop) - y), 0, height - 1)
        source_x = np.clip(x - 6 * (np.arange(columns.start, columns.stop) - x), 0, width - 1)
        lens = blurred[source_y.astype(int)[:, None], source_x.astype(int)[None]] * 1.05
        seen[rows, columns] = seen[rows, columns] * (1 - inside) + lens * inside
    return _in_range(seen)


WEATHERS = {"snow": snow, "rain": rain, "haze": haze, "drops": drops}


def degraded(photograph: Photograph, weather: str, seed: int = 0) -> Photograph:
    """A photograph (H, W, 3) in [0, 1] in "snow", "rain", "haze" or through "drops"; repeatable."""
    seen = WEATHERS[weather](photograph, np.random.default_rng(seed))
    return _in_range(seen).astype(np.float32)


def photographs() -> Iterator[Path]:
    """Those that are here."""
    yield Path(__file__).with_name("coffee.jpg")
    for package, names in BROUGHT.items():
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or [] if spec is not None else []:
            yield from (path for name in names if (path := Path(folder) / name).is_file())


def _disc(
    height: int, width: int, y: float, x: float, radius: float
) -> tuple[slice, slice, NDArray[np.float64]]:
    """The square around a point as slices, and the distances from the point in it."""
    rows = slice(max(0, int(y - radius)), min(height, int(y + radius) + 2))
    columns = slice(max(0, int(x - radius)), min(width, int(x + radius) + 2))
    squares_y = (np.arange(rows.start, rows.stop) - y) ** 2
    squares_x = (np.arange(columns.start, columns.stop) - x) ** 2
    return rows, columns, np.sqrt(squares_y[:, None] + squares_x[None])


def _in_range(photograph: NDArray[np.floating]) -> Photograph:
    return np.clip(photograph, 0, 1).astype(np.float32)


def main() -> None:
    """Writes the pictures."""
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in [Path(name) for name in sys.argv[2:]] or photographs():
        with Image.open(path) as opened:
            photograph = np.asarray(opened.convert("RGB"), np.float32) / 255
        seen = {"": photograph}
        seen |= {f"_{weather}": degraded(photograph, weather) for weather in WEATHERS}
        for suffix, picture in seen.items():
            levels = np.rint(picture * 255).astype(np.uint8)
            Image.fromarray(levels).save(folder / f"{path.stem}{suffix}.png")


if __name__ == "__main__":
    main()
