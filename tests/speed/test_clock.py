"""Turns, rounds and limits."""

from __future__ import annotations

import pytest
import torch

from clipweather_fast.speed import Times, in_turn
from clipweather_fast.speed import clock as clocks
from clipweather_fast.speed.clock import finisher


class Clock:
    """A clock that only the calls move."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.order: list[str] = []
        monkeypatch.setattr(clocks.time, "perf_counter", lambda: self.now)

    def call(self, name: str, seconds: float) -> None:
        self.order.append(name)
        self.now += seconds


def rounds(
    monkeypatch: pytest.MonkeyPatch, takes: dict[str, float], limit: float, most: int = 50
) -> tuple[dict[str, Times], list[str]]:
    clock = Clock(monkeypatch)
    calls = {name: lambda name=name: clock.call(name, takes[name]) for name in takes}
    finish = finisher(torch.device("cpu"))
    return in_turn(calls, takes, limit=limit, finish=finish, most=most), clock.order


def test_everybody_is_called_once_in_every_round(monkeypatch: pytest.MonkeyPatch) -> None:
    found, order = rounds(monkeypatch, {"a": 1.0, "b": 2.0}, limit=9.5)
    assert order == ["a", "b"] * 3  # a fourth round would take it to 12
    assert found == {"a": Times((1.0,) * 3), "b": Times((2.0,) * 3)}


def test_more_rounds_than_enough_are_not_made(monkeypatch: pytest.MonkeyPatch) -> None:
    found, _ = rounds(monkeypatch, {"a": 0.001}, limit=10.0, most=4)
    assert found["a"].rounds == 4


def test_what_does_not_fit_counts_with_its_first_call(monkeypatch: pytest.MonkeyPatch) -> None:
    found, order = rounds(monkeypatch, {"a": 5.0, "b": 7.0}, limit=10.0)
    assert order == []
    assert found == {"a": Times((5.0,), first_call=True), "b": Times((7.0,), first_call=True)}


def test_quantiles() -> None:
    times = Times((5.0, 1.0, 3.0, 2.0, 4.0))
    assert (times.median, times.quantile(0.2), times.quantile(0.8)) == (3.0, 2.0, 4.0)
