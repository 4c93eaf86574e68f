"""Where the time of restoring a picture goes: operator by operator, kernel by kernel.

    python -m benchmarks.models.picture_trace [--device cuda] [--model NAME] [--size WIDTHxHEIGHT]
                                              [--dtype NAME]

One call of a :class:`Restorer` under PyTorch's profiler, after two without. A line is an operator
with the shapes it got; on a GPU the kernels that it started are named under it. ``roof`` is the
share of the line's time that its operations would take at the matrix product's rate, or the
bytes of its arguments and result at the copy's rate, whichever is more, both measured in this run;
where PyTorch does not count an operator's operations only the bytes are known. Writes
``picture_trace_<model>_<size>_<dtype>.json`` beside the machine's results.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import roofs
from benchmarks.figures import write_figures
from benchmarks.models import picture_contest as contest
from benchmarks.models import picture_sides
from benchmarks.models.picture_work import flops
from benchmarks.results import RESULTS
from clipweather_fast.speed.clock import finisher, once

__all__ = ["Line", "lines", "main"]

#: Lines that take less than this share of the time are summed up as the rest.
LEAST_SHARE = 0.002
WIDTH_OF_NAMES = 64


@dataclass
class Line:
    """One operator with one set of shapes."""

    name: str
    shapes: str
    calls: int = 0
    seconds: float = 0.0
    share: float = 0.0
    flops: int = 0
    bytes: int = 0
    roof: float = 0.0
    kernels: dict[str, float] = field(default_factory=dict)


def lines(events: Any, device: str, rates: dict[str, float], itemsize: int) -> list[Line]:
    """The operators of a profile by the time that they themselves took, the longest first.

    Args:
        events: of a profile with shapes and operations.
        device: "cpu" or "cuda".
        rates: ``bytes_per_s`` and ``flops``.
        itemsize: bytes of a number, where the profile does not say the dtype.
    """
    found: dict[tuple[str, str], Line] = {}
    for event in events:
        seconds = _own_seconds(event, device)
        if seconds <= 0 or event.name.startswith("cuda"):
            continue
        shapes = [shape for shape in event.input_shapes if shape]
        key = event.name, " ".join("×".join(map(str, shape)) for shape in shapes)
        line = found.setdefault(key, Line(*key))
        line.calls += 1
        line.seconds += seconds
        line.flops += _operations(event, shapes)
        line.bytes += itemsize * (sum(map(_count, shapes)) + max(map(_count, shapes), default=0))
        for kernel in getattr(event, "kernels", ()):
            line.kernels[kernel.name] = line.kernels.get(kernel.name, 0) + kernel.duration / 1e6
    total = sum(line.seconds for line in found.values())
    for line in found.values():
        line.share = line.seconds / total
        least = max(line.flops / rates["flops"], line.bytes / rates["bytes_per_s"])
        computes = line.flops or line.name not in WITHOUT_ROOF
        line.roof = min(least / line.seconds, 1.0) if computes else 0.0
    return sorted(found.values(), key=lambda line: -line.seconds)


def _operations(event: Any, shapes: list[list[int]]) -> int:
    """Of one call: ours by formula; a convolution's, which PyTorch counts at its caller, here."""
    own = OURS.get(event.name)
    if own is not None:
        return own(shapes)
    if event.name == "aten::_convolution":  # a transposed one computes itself
        transposed = not any("convolution" in child.name for child in event.cpu_children)
        return 2 * _count(shapes[0]) // shapes[0][1] * _count(shapes[1]) if transposed else 0
    if event.name.endswith("_convolution"):
        caller = event.cpu_parent
        while caller is not None and not caller.flops:
            caller = caller.cpu_parent
        return int(caller.flops) if caller is not None else 0
    return 0 if event.name in WITHOUT_ROOF else int(event.flops or 0)


def _mixer(shapes: list[list[int]]) -> int:
    """The maps' depthwise kernel and their K pointwise sums, K mixed kernels and a static one."""
    kernels = shapes[3][0]
    return 2 * _count(shapes[0]) * (9 + kernels + 9 * kernels + 9)


#: Operations of our operators, from the shapes of their arguments in order; a multiply-add is two.
OURS: dict[str, Callable[[list[list[int]]], int]] = {
    "clipweather_fast::depthwise_conv2d": lambda shapes: 2 * 9 * _count(shapes[0]),
    "clipweather_fast::reduced_kv_attention": lambda shapes: 4 * _count(shapes[0]) * shapes[1][1],
    "clipweather_fast::sar_conv2d": lambda shapes: 2 * 9 * _count(shapes[0]) * (shapes[1][1] + 1),
    "clipweather_fast::sar_mixer": _mixer,
}
#: Who only calls others, allocates or looks.
WITHOUT_ROOF = {
    "aten::_convolution",
    "aten::as_strided",
    "aten::conv2d",
    "aten::conv_transpose2d",
    "aten::convolution",
    "aten::empty",
    "aten::layer_norm",
    "aten::linear",
    "aten::matmul",
    "aten::reshape",
    "aten::view",
}


def _count(shape: Any) -> int:
    count = 1
    for length in shape:
        count *= length if isinstance(length, int) else 1
    return count


def _own_seconds(event: Any, device: str) -> float:
    if device == "cuda":
        return float(sum(kernel.duration for kernel in event.kernels)) / 1e6
    return float(event.self_cpu_time_total) / 1e6


def by_kernel(found: list[Line]) -> dict[str, float]:
    """Seconds by kernel, over all operators."""
    seconds: dict[str, float] = defaultdict(float)
    for line in found:
        for kernel, taken in line.kernels.items():
            seconds[kernel] += taken
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--model", default="clipweather_base")
    parser.add_argument("--size", default="720x480", metavar="WIDTHxHEIGHT")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--given-prior", action="store_true", help="leave its encoder out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS, help="where the file goes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    width, height = map(int, options.size.split("x"))
    dtype, device = getattr(torch, options.dtype), options.device
    size = contest.PictureSize("", options.model, 1, height, width, options.given_prior)
    call = picture_sides.build("ours", size, dtype, device)
    images, finish = contest.pictures(size).to(device), finisher(torch.device(device))
    contest.checked(
        "ours", contest.PictureCase(size, dtype, "full", ()), device, call(images).cpu()
    )
    call(images)
    seconds = once(lambda: call(images), finish)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    with profile(activities=activities, record_shapes=True, with_flops=True) as profiler:
        call(images)
        finish()
    measured = roofs.measured(device)
    rate = measured.get(f"matmul_{options.dtype}_flops", measured["matmul_bfloat16_flops"])
    rates = {"bytes_per_s": measured["copy_bytes_per_s"], "flops": rate}
    found = lines(profiler.events() or [], device, rates, dtype.itemsize)
    work = flops(options.model, options.given_prior, height, width)
    print(f"{seconds * 1e3:.1f} ms unprofiled; {work / rate / seconds:.0%} of the matrix roof")
    for line in found[:40]:
        name = f"{line.name} {line.shapes}"[:WIDTH_OF_NAMES]
        print(
            f"{name:<{WIDTH_OF_NAMES}} {line.calls:4} × {line.seconds * 1e3:9.3f} ms "
            f"{line.share:6.1%} roof {line.roof:4.0%}"
        )
    kept = [asdict(line) for line in found if line.share >= LEAST_SHARE]
    figures = {
        "unprofiled_s": seconds,
        "flops": work,
        "matrix_roof": work / rate / seconds,
        "rest_share": 1 - sum(line["share"] for line in kept),
        "operators": kept,
        "kernels_s": by_kernel(found),
    }
    facts = {"threads": options.threads, "roofs": measured, "given_prior": options.given_prior}
    topic = f"picture_trace_{options.model}_{options.size}_{options.dtype}"
    path = write_figures(topic, figures, device, options.results, **facts)
    print(f"written: {path}")


if __name__ == "__main__":
    main()
