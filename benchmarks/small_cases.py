"""Every operator, forward and backward, on small awkward sizes: the work of a sanitizer's run.

``compute-sanitizer python -m benchmarks.small_cases --device cuda --backend cuda``
"""

from __future__ import annotations

import argparse
import sys

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
    run = 0
    for subject, sizes in _SUBJECTS:
        for size in sizes:
            for dtype in (torch.float32, torch.bfloat16):
                generator = torch.Generator().manual_seed(run)
                inputs = subject.inputs(size, dtype, options.device, subject.layouts[-1], generator)
                reason = subject.explain(inputs)[options.backend]
                if not reason.startswith("yes"):
                    print(f"{subject.topic}, {size.name}, {dtype}: {reason}")
                    continue
                leaves = [leaf(inputs, name).requires_grad_() for name in subject.differentiable]
                y = subject.ours(inputs, options.backend)
                torch.autograd.grad(y, leaves, torch.ones_like(y))
                run += 1
    if options.device == "cuda":
        torch.cuda.synchronize()
    print(f"{run} cases ran")
    return 0 if run else 1


if __name__ == "__main__":
    sys.exit(main())
