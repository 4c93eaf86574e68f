"""The measurements behind ``clipweather bench``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from clipweather_fast.models import RestorationNetwork, list_models
from clipweather_fast.ops.reduced_kv_attention import op
from clipweather_fast.speed import (
    NETWORKS,
    Case,
    GivenPrior,
    WrongPicture,
    measured,
    pytorch_alone,
    table,
)
from clipweather_fast.speed import networks as for_timing
from clipweather_fast.speed.table import precision
from small_networks import small

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_network(monkeypatch: pytest.MonkeyPatch) -> RestorationNetwork:
    network = small(prior_encoder="convolutional:32", prior_dim=32, prior_width=32)
    monkeypatch.setattr(table, "network_for_timing", lambda name: network)
    monkeypatch.setattr(table, "LONGEST_CASE", 0.3)
    return network


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_both_sides_are_timed_and_agree(dtype: torch.dtype) -> None:
    cases = [Case("a", 70, 50), Case("a", 130, 64)]
    for case, row in zip(cases, measured(cases, CPU, dtype, 90.0), strict=True):
        assert (row.case, row.reason) == (case, "")
        assert row.fast is not None
        assert row.plain is not None
        assert min(row.fast.median, row.plain.median) > 0
        assert row.fast.rounds == row.plain.rounds
        assert row.difference <= (1e-4 if dtype == torch.float32 else 0.1)


def test_a_wrong_picture_gets_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    right = table._Pair._fast
    monkeypatch.setattr(
        table._Pair, "_fast", lambda self, image: (right(self, image) + 0.01).clamp(0, 1)
    )
    with pytest.raises(WrongPicture, match=r"a at 70 x 50 in float32: .* differ by 0\.01"):
        list(measured([Case("a", 70, 50)], CPU, torch.float32, 1.0))


def test_what_does_not_fit_into_the_time_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table._Pair, "expected", lambda self, case: 70.0 * (case.width > 100))
    rows = list(measured([Case("a", 70, 50), Case("a", 130, 64)], CPU, torch.float32, 60.0))
    assert [row.reason for row in rows] == ["", "it would take about 70 s"]
    assert rows[1].fast is None


def test_a_larger_picture_is_expected_to_take_longer(small_network: RestorationNetwork) -> None:
    pair = table._Pair("a", small_network, CPU, torch.float32)
    assert pair.expected(Case("a", 64, 64)) == 0
    pair._known = Case("a", 64, 64), 2.0
    assert 8 < pair.expected(Case("a", 128, 128)) < 12


def test_what_memory_does_not_hold_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, image: torch.Tensor) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(table._Pair, "_plain", full)
    (row,) = measured([Case("a", 70, 50)], CPU, torch.float32, 1.0)
    assert (row.fast, row.reason) == (None, "PyTorch alone does not fit into memory")


def test_auto_is_the_restorers_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(table, "fast_at_bfloat16", lambda device, fast=fast: fast)
        assert precision("auto", CPU) == expected
    assert precision("float16", CPU) == torch.float16


def test_pytorch_alone_is_left_as_it_was() -> None:
    before = op.reduced_kv_attention_reference
    with pytorch_alone():
        assert op.reduced_kv_attention_reference is op.attention_sdpa
    with pytorch_alone(scores=True):
        assert op.reduced_kv_attention_reference is before
    assert op.reduced_kv_attention_reference is before


def test_a_given_prior_takes_the_encoders_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(for_timing, "create_model", lambda name, **changes: small(**changes))
    network: Any = for_timing.network_for_timing("another", given_prior=True)
    (encoder,) = network._frozen
    assert isinstance(encoder, GivenPrior)
    assert not network.training
    image = torch.rand(2, 3, 64, 64)
    prior = network.encode_prior(image)
    assert prior.shape == (2, network.config.prior_dim)
    assert torch.equal(network(image), network(image, prior))
    monkeypatch.setattr(for_timing, "create_model", lambda name: small("TransWeather"))
    with pytest.raises(ValueError, match="no frozen prior encoder"):
        for_timing.network_for_timing("another", given_prior=True)


def test_the_networks_of_the_table_exist() -> None:
    assert set(NETWORKS) <= set(list_models())
