"""The learning rate by the step, and the average of the weights, against hand-worked values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from clipweather_fast.training.ema import Ema
from clipweather_fast.training.schedule import factor
from clipweather_fast.training.sections import EmaSection, ScheduleSection


def test_the_papers_steps_halve_every_hundred_epochs() -> None:
    section = ScheduleSection(kind="step", every=100, factor=0.5)
    found = [factor(section, epoch * 7 + 6, 250 * 7, 7) for epoch in (0, 99, 100, 199, 200, 249)]
    assert found == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_cosine_with_warm_up() -> None:
    section = ScheduleSection(kind="cosine", warmup=10, final=0.1)
    assert factor(section, 0, 110, 5) == pytest.approx(0.1)
    assert factor(section, 9, 110, 5) == pytest.approx(1.0)
    assert factor(section, 60, 110, 5) == pytest.approx(0.55)
    assert factor(section, 109, 110, 5) == pytest.approx(
        0.1 + 0.9 * (1 + math.cos(math.pi * 0.99)) / 2
    )
    share = ScheduleSection(kind="cosine", warmup=0.1, final=0.1)
    assert [factor(share, i, 100, 5) for i in range(100)] == [
        factor(section, i, 100, 5) for i in range(100)
    ]


def test_constant() -> None:
    assert factor(ScheduleSection(kind="constant"), 5, 10, 2) == 1.0


def test_the_average_follows_its_formula() -> None:
    torch.manual_seed(0)
    module = nn.Linear(2, 2, bias=False)
    ema = Ema(module, EmaSection(decay=0.9, warmup=True))
    expected = module.weight.detach().double().clone()
    for step in range(200):
        with torch.no_grad():
            module.weight.add_(torch.randn(2, 2))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * module.weight.detach().double()
    torch.testing.assert_close(ema.average["weight"].double(), expected, rtol=1e-5, atol=1e-5)


def test_no_decay_is_the_weights_themselves() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, EmaSection(decay=0.0, warmup=False))
    with torch.no_grad():
        module.weight.mul_(3).add_(1)
    ema.update(0)
    assert torch.equal(ema.average["weight"], module.weight)


def test_applied_puts_the_average_in_place_and_back() -> None:
    module = nn.Linear(2, 2)
    ema = Ema(module, EmaSection())
    average = ema.average["weight"].clone()
    with torch.no_grad():
        module.weight.add_(1)
    weight = module.weight.detach().clone()
    with ema.applied():
        assert torch.equal(module.weight, average)
    assert torch.equal(module.weight, weight)
    with pytest.raises(ZeroDivisionError), ema.applied():
        1 / 0  # noqa: B018 an error inside
    assert torch.equal(module.weight, weight)
    assert torch.equal(ema.average["weight"], average)
