"""Writes the pairs in examples/pairs: three photographs in snow, in rain with haze, behind drops.

    python examples/make_pairs.py OUT

The photographs are scikit-image's (in this project's `test` extra), in the public domain or CC0,
and held out: the weights that come with the package were trained on others. The weather is made on
them with a fixed seed, so the same command writes the same files.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipweather_fast.data.synthesis import degrade

#: Photograph, weather, seed.
PAIRS = (("rocket.jpg", "snow", 3), ("chelsea.png", "rain", 5), ("coffee.png", "raindrop", 8))
#: Longer side in pixels.
SIDE = 448


def photograph(name: str) -> Image.Image:
    """One of scikit-image's, reduced."""
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        sys.exit("scikit-image is not installed; pip install 'clipweather_fast[test]'")
    with Image.open(Path(spec.submodule_search_locations[0]) / "data" / name) as image:
        whole = image.convert("RGB")
    whole.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return whole


def main() -> None:
    """Writes OUT/<weather>/input and OUT/<weather>/gt."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    for name, weather, seed in PAIRS:
        folder = Path(sys.argv[1]) / weather
        for kind in ("input", "gt"):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        file = f"{Path(name).stem}.jpg"
        photograph(name).save(folder / "gt" / file, quality=95, subsampling=0)
        with Image.open(folder / "gt" / file) as image:
            truth = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)[None] / 255
        seen = degrade(truth, [weather], torch.tensor([seed]))[0].permute(1, 2, 0)
        levels = (seen.clamp(0, 1) * 255).round().to(torch.uint8).numpy()
        Image.fromarray(levels).save(folder / "input" / file, quality=95, subsampling=0)


if __name__ == "__main__":
    main()
