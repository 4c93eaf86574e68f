"""Writes the photographs that are held out for judging, and the fixed pairs made of them.

    python examples/mini_synthetic/held_out.py PHOTOGRAPHS PAIRS

PHOTOGRAPHS gets seven photographs that scikit-image and scikit-learn bring (both are in this
project's `test` extra); no network may be trained on them. PAIRS gets snow, rain and raindrop with
three variations of each, in folders that `clipweather eval` reads. The seed is fixed, so that
everyone who runs this judges by the same pairs. Call results on them "mini-synthetic".
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from clipweather_fast.data.synthesis.dataset import Settings, write_dataset

HELD_OUT = {
    "skimage": [
        "data/astronaut.png",
        "data/chelsea.png",
        "data/coffee.png",
        "data/motorcycle_left.png",
        "data/rocket.jpg",
    ],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
}
SETTINGS = Settings(seed=20_260, variations=3)


def write_photographs(folder: Path) -> None:
    """Decodes the packages' photographs into PNG files, as they are."""
    folder.mkdir(parents=True, exist_ok=True)
    for package, names in HELD_OUT.items():
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            sys.exit(f"{package} is not installed; pip install 'clipweather_fast[test]'")
        for name in names:
            path = Path(spec.submodule_search_locations[0]) / name
            with Image.open(path) as photograph:
                photograph.convert("RGB").save(folder / f"{path.stem}.png")


def main() -> None:
    """Writes both folders, and says how strong the weather is."""
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    photographs, pairs = map(Path, sys.argv[1:])
    write_photographs(photographs)
    torch.set_num_threads(1)
    report = write_dataset([str(photographs)], pairs, SETTINGS, workers=2)
    for weather in SETTINGS.weathers:
        psnr = [p["psnr_rgb"] for p in report.pictures if p["weather"] == weather]
        spread = f"{min(psnr):.1f} to {max(psnr):.1f}"
        print(f"{weather}: {len(psnr)} pairs, input {np.mean(psnr):.2f} dB (rgb), {spread}")


if __name__ == "__main__":
    main()
