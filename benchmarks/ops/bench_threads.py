"""Two threads against one, of our own operators, on shapes large enough to share."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from benchmarks import machine
from benchmarks.ops import bench_sar_conv2d
from benchmarks.shapes import hidden_size
from benchmarks.subject import Case, Contestant, Inputs, Subject


def _one_thread(case: Case, device: str) -> list[Contestant]:
    return [Contestant("one thread", _ours, threads=1)]


def _ours(inputs: Inputs) -> torch.Tensor:
    return bench_sar_conv2d.SUBJECT.ours(inputs, None)


SUBJECT: Subject = dataclasses.replace(
    bench_sar_conv2d.SUBJECT, topic="threads", opponents=_one_thread, plain=False, threads=2
)


def cases(device: str) -> list[Case]:
    if device != "cpu" or machine.cores() < 2:
        return []
    return [
        Case(hidden_size("1080p", 1), torch.float32, "forward"),
        Case(hidden_size("1080p", 2), torch.float32, "forward"),
        Case(hidden_size("1080p", 2), torch.float32, "both"),
        Case(hidden_size("256x256", 1, batch=4), torch.float32, "forward"),
    ]


def test_two_threads(case: Case, measured: Any) -> None:
    measured(SUBJECT, case)
