"""Every operator, forward and backward, on small awkward sizes: the work of a sanitizer's run.

``compute-sanitizer python -m benchmarks.small_cases --device cuda --backend cuda``
"""

from __future__ import annotations

import argparse
import sys
import traceback
from typing import Any

import torch

from benchmarks.ops import (
    bench_depthwise_conv2d,
    bench_reduced_kv_attention,
    bench_sar_conv2d,
    bench_sar_logits,
    bench_sar_mixer,
)
from benchmarks.shapes import AttentionSize, ImageSize
from benchmarks.subject import Subject, leaf

_IMAGES = (
    ImageSize("one pixel", 1, 8, 1, 1),
    ImageSize("odd", 2, 19, 7, 5),
    ImageSize("tiles and a rest", 1, 72, 17, 33),
)
_ATTENTION = (
    AttentionSize("one key", 1, 3, 1, 1, 64),
    AttentionSize("odd", 2, 70, 33, 2, 80),
    AttentionSize("prior", 1, 130, 48, 1, 64),
    AttentionSize("several tiles and runs", 1, 300, 70, 1, 19),
)
_SUBJECTS: tuple[tuple[Subject, tuple[ImageSize, ...] | tuple[AttentionSize, ...]], ...] = (
    (bench_sar_conv2d.SUBJECT, _IMAGES),
    (bench_depthwise_conv2d.SUBJECT, _IMAGES),
    (bench_sar_logits.SUBJECT, _IMAGES),
    (bench_sar_mixer.SUBJECT, _IMAGES),
    (bench_reduced_kv_attention.SUBJECT, _ATTENTION),
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.small_cases", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--backend", choices=("cpu", "cuda", "triton"), default="cpu")
    options = parser.parse_args()
    ran = failed = 0
    cases = (
        (subject, size, dtype)
        for subject, sizes in _SUBJECTS
        for size in sizes
        for dtype in (torch.float32, torch.bfloat16)
    )
    for subject, size, dtype in cases:
        name = f"{subject.topic}, {size.name}, {dtype}"
        try:
            reason = _run(subject, size, dtype, options.device, options.backend)
        except Exception:  # the other operators are still worth a run
            traceback.print_exc()
            failed += 1
            continue
        ran += reason is None
        print(f"{name}: {reason or 'ran'}", flush=True)
    print(f"{ran} cases ran, {failed} failed")
    return 0 if ran and not failed else 1


def _run(subject: Subject, size: Any, dtype: torch.dtype, device: str, backend: str) -> str | None:
    """Forward and backward of one case; the reason where the backend cannot run it."""
    generator = torch.Generator().manual_seed(0)
    inputs = subject.inputs(size, dtype, device, subject.layouts[-1], generator)
    reason = subject.explain(inputs)[backend]
    if not reason.startswith("yes"):
        return reason
    leaves = [leaf(inputs, name).requires_grad_() for name in subject.differentiable]
    y = subject.ours(inputs, backend)
    torch.autograd.grad(y, leaves, torch.ones_like(y))
    if device == "cuda":
        torch.cuda.synchronize()
    return None


if __name__ == "__main__":
    sys.exit(main())
