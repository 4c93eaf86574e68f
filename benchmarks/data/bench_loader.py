"""How many pictures per second one processor core decodes, crops and makes tensors of.

``python -m benchmarks.data.bench_loader`` prints the rates and writes
``benchmarks/results/<machine>/loader.json``; ``pytest benchmarks`` checks on a few pictures that
what is timed is right. Pictures are 480 x 720, as Outdoor-Rain's and RainDrop's, crops 256 x 256.
They are a photograph with the noise of a camera: without noise PNG files would be smaller and
decode faster than real ones. Both pictures of a pair count. Run it on an idle machine: rates are of
processor time, but a full machine is slower in that too.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks import machine
from benchmarks.figures import write_figures
from clipweather_fast.data import CleanDataset, Pair, PairDataset, to_unit_range
from clipweather_fast.data.choices import Choices
from clipweather_fast.restore import Picture, read_picture, write_picture

ROOT = Path(__file__).resolve().parents[2]
PHOTOGRAPH = ROOT / "examples" / "coffee.jpg"
HEIGHT, WIDTH, CROP, BATCH = 480, 720, 256, 16
FORMATS = ("png", "jpg", "png16")


class WholePairs(Dataset[dict[str, Tensor]]):
    """What is usually written: both files decoded whole, turned into floats, then cropped."""

    def __init__(self, pairs: list[Pair], choose: PairDataset) -> None:
        self.pairs, self.choose = pairs, choose

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        choices = Choices("pair", self.choose.seed, self.choose.epoch, index)
        top, left = choices.below(HEIGHT - CROP + 1), choices.below(WIDTH - CROP + 1)
        axes = [axis for axis in (1, 2) if choices.coin()]
        sample = {}
        for name, path in (("image", self.pairs[index].image), ("truth", self.pairs[index].truth)):
            with Image.open(path) as image:
                pixels = torch.from_numpy(np.array(image.convert("RGB")))
            whole = pixels.permute(2, 0, 1).contiguous().to(torch.float32).div(255)
            sample[name] = whole[:, top : top + CROP, left : left + CROP].flip(axes).contiguous()
        return sample


def write_pairs(folder: Path, format: str, count: int) -> list[Pair]:
    """Pairs of different pictures in one format."""
    photograph = (
        Image.open(PHOTOGRAPH).convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)
    )
    clear = np.asarray(photograph, dtype=np.float64)
    random = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        paths = []
        for kind in ("input", "gt"):
            noisy = clear + random.normal(0, 2, clear.shape)
            path = folder / format / kind / f"{number}.{format.removesuffix('16')}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if format == "png16":
                deep = (noisy * 257).clip(0, 65535).astype(np.uint16)
                write_picture(Picture(deep, "RGB"), path)
            else:
                options = {"quality": 92} if format == "jpg" else {}
                Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(path, **options)
            paths.append(path)
        pairs.append(Pair(paths[0], paths[1], "snow"))
    return pairs


@dataclass(frozen=True)
class Rate:
    """Pictures per second of processor time, and their spread over the rounds."""

    median: float
    low: float
    high: float


def rate(work: Callable[[], int], rounds: int) -> Rate:
    """Pictures per second of this process's processor time: others on the machine do not count."""
    work()
    found = []
    for _ in range(rounds):
        began = time.process_time()
        pictures = work()
        found.append(pictures / (time.process_time() - began))
    return Rate(statistics.median(found), min(found), max(found))


def samples(dataset: Any, per_sample: int) -> Callable[[], int]:
    """Takes every sample of a dataset once, of another epoch each time."""
    epoch = [0]

    def work() -> int:
        epoch[0] += 1
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(epoch[0])
        for index in range(len(dataset)):
            dataset[index]
        return per_sample * len(dataset)

    return work


def loader_rate(dataset: PairDataset, workers: int, rounds: int) -> Rate:
    """Pictures per second of wall time that a loader with worker processes delivers as floats."""
    loader = DataLoader(
        dataset, BATCH, num_workers=workers, persistent_workers=True, drop_last=True
    )

    def once() -> float:
        began = time.perf_counter()
        count = 0
        for batch in loader:
            count += 2 * len(to_unit_range(batch)["image"])
        return count / (time.perf_counter() - began)

    once()
    found = [once() for _ in range(rounds)]
    return Rate(statistics.median(found), min(found), max(found))


def measured(folder: Path, count: int, rounds: int, loader: bool) -> dict[str, Any]:
    """All rates, by name."""
    found: dict[str, Any] = {}
    for format in FORMATS:
        pairs = write_pairs(folder, format, count)
        size = statistics.mean(pair.image.stat().st_size for pair in pairs)
        dataset = PairDataset(pairs, crop=CROP)
        rates = {"pairs": rate(samples(dataset, 2), rounds)}
        as_bytes = PairDataset(pairs, crop=CROP, dtype=torch.uint8)
        rates["pairs as bytes"] = rate(samples(as_bytes, 2), rounds)
        if format != "png16":
            rates["pairs, whole files first"] = rate(samples(WholePairs(pairs, dataset), 2), rounds)
        clean = CleanDataset([pair.truth for pair in pairs], crop=CROP, held_bytes=0)
        rates["clear"] = rate(samples(clean, 1), rounds)
        held = CleanDataset([pair.truth for pair in pairs], crop=CROP)
        rates["clear, held in memory"] = rate(samples(held, 1), rounds)
        if format == "png16" or not loader:
            found[format] = _content(size, rates)
            continue
        workers = machine.cores()
        many = pairs * -(-8 * BATCH // len(pairs))
        for name, dtype in (("float32", torch.float32), ("bytes", torch.uint8)):
            whole = PairDataset(many, crop=CROP, dtype=dtype)
            key = f"loader, {workers} workers, {name} (wall time)"
            rates[key] = loader_rate(whole, workers, rounds)
        found[format] = _content(size, rates)
    return found


def _content(size: float, rates: dict[str, Rate]) -> dict[str, Any]:
    return {"bytes_per_file": round(size), "rates": {k: vars(v) for k, v in rates.items()}}


@pytest.mark.parametrize("format", FORMATS)
def test_what_is_timed_is_right(format: str, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path, format, 2)
    dataset = PairDataset(pairs, crop=CROP)
    if format != "png16":
        whole = WholePairs(pairs, dataset)
        for index in range(2):
            for name in ("image", "truth"):
                assert torch.equal(dataset[index][name], whole[index][name])
    held = CleanDataset([pair.truth for pair in pairs], crop=HEIGHT, flips=False)[1]["truth"]
    exact = read_picture(pairs[1].truth).pixels
    top = np.iinfo(exact.dtype).max
    rows = torch.from_numpy(exact.astype(np.float32)).permute(2, 0, 1) / top
    assert any(
        torch.equal(rows[:, :, left : left + HEIGHT], held) for left in range(WIDTH - HEIGHT + 1)
    )
    assert rate(samples(dataset, 2), 1).median > 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=8, help="pairs per format")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--no-loader",
        action="store_true",
        help="leave out the loader with worker processes, whose wall time needs an idle machine",
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(
            Path(folder), arguments.pictures, arguments.rounds, not arguments.no_loader
        )
    for format, content in found.items():
        print(f"{format}: {content['bytes_per_file'] / 1024:.0f} KiB per file")
        for name, each in content["rates"].items():
            spread = f"{each['low']:.0f} to {each['high']:.0f}"
            print(f"  {each['median']:7.0f} pictures/s ({spread})  {name}")
    facts = {"pillow": PIL.__version__, "picture": [HEIGHT, WIDTH], "crop": CROP, "threads": 1}
    path = write_figures("loader", found, rounds=arguments.rounds, **facts)
    print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
