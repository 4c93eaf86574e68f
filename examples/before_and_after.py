"""Draws the README's picture: input, restored and truth of the pairs in examples/pairs.

python examples/before_and_after.py docs/before_and_after.jpg
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor

from clipweather_fast import Restorer
from clipweather_fast.contact_sheet import contact_sheet
from clipweather_fast.data import find_pairs
from clipweather_fast.evaluation import psnr
from clipweather_fast.restore import read_picture


def main() -> None:
    """Restores the pairs with the weights that come with the package."""
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    restorer = Restorer(device="cpu", dtype="float32")
    rows: list[list[Tensor]] = []
    captions: list[str] = []
    for pair in find_pairs(Path(__file__).parent / "pairs"):
        seen, truth = (read_picture(path).pixels for path in (pair.image, pair.truth))
        restored = restorer(seen)
        before, after = psnr(seen, truth, "rgb"), psnr(restored, truth, "rgb")
        captions.append(f"{pair.weather}: {before:.1f} dB, restored {after:.1f} dB (PSNR, rgb)")
        rows.append([torch.from_numpy(x).permute(2, 0, 1) / 255 for x in (seen, restored, truth)])
    contact_sheet(rows, ["input", "restored", "truth"], sys.argv[1], captions=captions)


if __name__ == "__main__":
    main()
