"""Configurations: the paper's defaults, dictionaries, and words for what is wrong."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from clipweather_fast.models import (
    ClipWeatherConfig,
    NetworkConfig,
    TransWeatherConfig,
    default_config,
    list_models,
)

CONFIGS = [ClipWeatherConfig, TransWeatherConfig]


def test_defaults_are_the_specification_s() -> None:
    config = ClipWeatherConfig()
    assert config.dims == (64, 128, 320, 512)
    assert (config.depths, config.heads) == ((2, 2, 2, 2), (1, 2, 4, 4))
    assert (config.reductions, config.intra_reductions) == ((4, 2, 2, 1), (4, 2, 2))
    assert config.intra_heads == (1, 2, 2)
    assert (config.num_kernels, config.sar_kernel_size, config.sar_gate) == (3, 3, "softmax")
    assert (config.sar_arrangement, config.sar_sign, config.sar_per_channel) == (
        "parallel",
        1,
        False,
    )
    assert (config.prior_tokens, config.prior_blocks, config.prior_heads) == (48, 3, 8)
    assert (config.prior_fuse, config.gamma_init, config.drop_path_rate) == ("sum", 0.0, 0.1)


@pytest.mark.parametrize("name", list_models())
def test_through_json_and_back(name: str) -> None:
    config = default_config(name)
    values = json.loads(json.dumps(config.to_dict()))
    assert values["architecture"] == config.architecture
    assert type(config).from_dict(values) == config


@pytest.mark.parametrize("kind", CONFIGS)
def test_frozen(kind: type[NetworkConfig]) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        kind().dims = (1, 2, 3, 4)  # type: ignore[misc]


def test_unknown_fields_raise_and_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"no field 'num_kernel'; did you mean 'num_kernels'\?"):
        ClipWeatherConfig.from_dict({"num_kernel": 3})
    with pytest.raises(ValueError, match="no field 'zzz'; it has dims, depths"):
        ClipWeatherConfig().replace(zzz=1)
    with pytest.raises(ValueError, match="of architecture 'TransWeather', not 'ClipWeather'"):
        ClipWeatherConfig.from_dict(TransWeatherConfig().to_dict())


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("dims", (64, 128, 320), "a tuple of 4 integers from 1 to 8192"),
        ("dims", (64, 128, 320, 0), "a tuple of 4 integers from 1 to 8192"),
        ("dims", 64, "a tuple of 4 integers from 1 to 8192"),
        ("depths", (2, 2, 2, True), "a tuple of 4 integers from 1 to 8192"),
        ("dims", (64, 128, 320, 10**9), "a tuple of 4 integers from 1 to 8192"),
        ("depths", (2, 2, 2, 257), "at most 256 per stage"),
        ("prior_blocks", 257, "at most 256"),
        ("mlp_ratio", 1e9, "above 0 and at most 64"),
        ("heads", (3, 2, 4, 4), "divisors of the channels (64, 128, 320, 512)"),
        ("intra_heads", (1, 3, 2), "divisors of the channels (128, 320, 512)"),
        ("mlp_ratio", 0, "above 0 and at most 64"),
        ("mlp_ratio", "2", "above 0 and at most 64"),
        ("qkv_bias", 1, "True or False"),
        ("drop_path_rate", 1.0, "a rate in [0, 1)"),
        ("decoder_tail", (16,), "a tuple of 2 integers from 1 to 8192"),
        ("num_kernels", 9, "an integer 0 to 8"),
        ("num_kernels", True, "an integer 0 to 8"),
        ("sar_kernel_size", 4, "one of 3, 5, 7"),
        ("sar_gate", "relu", "one of 'softmax', 'sigmoid'"),
        ("sar_arrangement", "after", "one of 'parallel', 'sequential', 'direct'"),
        ("sar_sign", 0, "one of 1, -1"),
        ("sar_sign", True, "one of 1, -1"),
        ("sar_kernel_size", 3.0, "one of 3, 5, 7"),
        ("sar_per_channel", None, "True or False"),
        ("prior_encoder", "", "a kind or 'none'"),
        ("prior_weights", 3, "the name of a source of weights, or None"),
        ("prior_dim", 0, "an integer from 1 to 8192"),
        ("prior_activation", "tanh", "one of 'gelu', 'relu', 'none'"),
        ("prior_heads", 7, "a divisor of the channels 512"),
        ("prior_fuse", "product", "one of 'sum', 'concat'"),
        ("prior_token_std", -1.0, "0 or more"),
        ("residual_output", 1, "one of False, True, 'gated'"),
        ("gamma_init", float("nan"), "a number"),
        ("gamma_init", float("inf"), "a number"),
    ],
)
def test_a_wrong_value_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole text is compared
        ClipWeatherConfig(**{field: value})
    assert str(caught.value) == f"ClipWeatherConfig: {field} must be {words}, got {value!r}"


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("queries", 0, "an integer from 1 to 8192"),
        ("query_heads", 3, "a divisor of the channels 512"),
        ("query_mlp_ratio", -1, "above 0 and at most 64"),
    ],
)
def test_a_wrong_value_of_transweather_is_named(field: str, value: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole text is compared
        TransWeatherConfig(**{field: value})
    assert str(caught.value) == f"TransWeatherConfig: {field} must be {words}, got {value!r}"
