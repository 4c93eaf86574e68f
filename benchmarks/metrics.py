"""What scoring a picture costs here and with scikit-image and torchmetrics: time and memory.

    python -m benchmarks.metrics [--size HEIGHT WIDTH] [--rounds N]

Both sides are given 8-bit pictures in memory, compute PSNR and SSIM in float64 with one thread, and
must agree to six digits before they are timed. Memory is the peak of NumPy's arrays.
"""

from __future__ import annotations

import argparse
import math
import time
import tracemalloc
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray

from clipweather_fast.evaluation import PROTOCOLS, score

__all__ = ["main"]

Figures = tuple[float, float]
Scoring = Callable[[], Figures]
GAUSSIAN = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}


def contestants(restored: NDArray[np.uint8], truth: NDArray[np.uint8]) -> dict[str, list[Scoring]]:
    """By protocol: ours, then others that define the same."""
    from skimage import metrics
    from torchmetrics.functional import image

    def ours(protocol: str) -> Scoring:
        def scoring() -> Figures:
            found = score(restored, truth, [protocol])[protocol]
            return found.psnr, found.ssim

        return scoring

    def paper() -> Figures:
        x, y = (p @ np.array([0.299, 0.587, 0.114]) for p in (restored, truth))
        ratio = metrics.peak_signal_noise_ratio(y, x, data_range=255)
        return ratio, metrics.structural_similarity(y, x, data_range=255)

    def studio() -> Figures:
        x, y = (16 + p / 255 @ np.array([65.481, 128.553, 24.966]) for p in (restored, truth))
        ratio = metrics.peak_signal_noise_ratio(y, x, data_range=255)
        return ratio, metrics.structural_similarity(y, x, data_range=255, **GAUSSIAN)

    def rgb() -> Figures:
        x, y = restored / 255, truth / 255
        ratio = metrics.peak_signal_noise_ratio(y, x, data_range=1)
        return ratio, metrics.structural_similarity(y, x, data_range=1, channel_axis=2, **GAUSSIAN)

    def rgb_in_torch() -> Figures:
        x, y = (
            torch.from_numpy(p).permute(2, 0, 1)[None].double() / 255 for p in (restored, truth)
        )
        ratio = image.peak_signal_noise_ratio(x, y, data_range=1.0)
        # Where the window lies inside the picture; its own mean is over mirrored edges too.
        _, alike = image.structural_similarity_index_measure(
            x, y, data_range=1.0, return_full_image=True
        )
        return ratio.item(), alike[..., 5:-5, 5:-5].mean().item()

    others = {"paper": [paper], "rgb": [rgb, rgb_in_torch], "y_matlab": [studio]}
    return {name: [ours(name), *others.get(name, [])] for name in PROTOCOLS}


def measured(scoring: Scoring, rounds: int) -> tuple[float, float]:
    """Median seconds, and the peak of NumPy's arrays in bytes."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        scoring()
        times.append(time.perf_counter() - began)
    tracemalloc.start()
    scoring()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return float(np.median(times)), peak


def main() -> None:
    """Prints a line per protocol and contestant."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, nargs=2, default=(480, 720))
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    truth = random.integers(0, 256, (*options.size, 3), dtype=np.uint8)
    noisy = truth + random.normal(0, 10, truth.shape)
    restored = np.clip(noisy, 0, 255).astype(np.uint8)
    names = ("clipweather_fast", "scikit-image", "torchmetrics")
    for protocol, scorings in contestants(restored, truth).items():
        expected = scorings[0]()
        for name, scoring in zip(names, scorings, strict=False):
            found = scoring()
            if not all(
                math.isclose(*pair, rel_tol=1e-6) for pair in zip(found, expected, strict=True)
            ):
                raise SystemExit(f"{name} gives {found} under {protocol}, expected {expected}")
            seconds, peak = measured(scoring, options.rounds)
            memory = "not NumPy's" if name == "torchmetrics" else f"{peak / 2**20:.1f} MiB"
            print(f"{protocol:<18} {name:<17} {seconds * 1e3:8.1f} ms  {memory}", flush=True)


if __name__ == "__main__":
    main()
