"""depthwise_conv2d on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast import ops
from op_tests import OpTests
from operands import normal


class TestDepthwiseConv2d(OpTests):
    op = staticmethod(ops.depthwise_conv2d)
    activations = ("x",)
    cases = {
        "gelu": {"activation": "gelu"},
        "without_bias": {"bias": False},
        "plain": {},
        "five_by_five": {"k": 5, "activation": "gelu"},
        "seven_by_seven": {"k": 7, "activation": "gelu"},
        "one_channel": {"shape": (2, 1, 6, 7), "activation": "gelu"},
        "three_channels": {"shape": (1, 3, 5, 4), "activation": "gelu"},
        "many_channels": {"shape": (1, 64, 6, 9), "activation": "gelu"},
        "channels_past_a_block": {"shape": (1, 130, 5, 6), "activation": "gelu"},
        "wide": {"shape": (1, 8, 3, 67), "activation": "gelu"},
        "tall": {"shape": (1, 8, 70, 2), "activation": "gelu"},
        "one_pixel": {"shape": (2, 17, 1, 1), "activation": "gelu"},
        "one_row": {"shape": (1, 16, 1, 9), "activation": "gelu"},
        "one_column": {"shape": (1, 16, 9, 1), "activation": "gelu"},
        "smaller_than_kernel": {"shape": (1, 5, 2, 3), "k": 7, "activation": "gelu"},
        "no_image": {"shape": (0, 17, 5, 6), "activation": "gelu"},
        "no_channel": {"shape": (2, 0, 5, 6)},
        "no_row": {"shape": (2, 3, 0, 5), "activation": "gelu"},
        "no_column": {"shape": (2, 3, 5, 0)},
    }
    representative = ("gelu", "without_bias")
    tiny = {
        "gelu": {"shape": (1, 2, 3, 4), "activation": "gelu"},
        "plain": {"shape": (2, 1, 3, 3)},
        "five_by_five": {"shape": (1, 1, 4, 3), "k": 5, "activation": "gelu"},
    }
    bad = {
        "x_is_a_number": (
            {"x": 1.0},
            TypeError,
            "depthwise_conv2d: x must be a tensor, got float",
        ),
        "x_is_integer": (
            {"x": lambda x: x.long()},
            TypeError,
            "depthwise_conv2d: x must be float32, bfloat16, float16 or float64, got torch.int64; "
            "convert it with x.float()",
        ),
        "x_has_five_axes": (
            {"x": lambda x: x[None]},
            ValueError,
            "depthwise_conv2d: x must be (N, C, H, W), got (1, 2, 17, 9, 11)",
        ),
        "weight_is_none": (
            {"weight": None},
            TypeError,
            "depthwise_conv2d: weight must be a tensor, got NoneType",
        ),
        "weight_elsewhere": (
            {"weight": lambda t: t.to("meta")},
            ValueError,
            "depthwise_conv2d: weight must be on the device of the first argument, cpu, got meta",
        ),
        "weight_mixes_channels": (
            {"weight": torch.zeros(17, 17, 3, 3)},
            ValueError,
            "depthwise_conv2d: weight must be (C, 1, k, k) with C = 17, got (17, 17, 3, 3)",
        ),
        "weight_not_square": (
            {"weight": torch.zeros(17, 1, 5, 3)},
            ValueError,
            "depthwise_conv2d: weight must be (C, 1, k, k) with C = 17, got (17, 1, 5, 3)",
        ),
        "weight_is_a_matrix": (
            {"weight": torch.zeros(17, 9)},
            ValueError,
            "depthwise_conv2d: weight must be (C, 1, k, k) with C = 17, got (17, 9)",
        ),
        "one_by_one_kernel": (
            {"weight": torch.zeros(17, 1, 1, 1)},
            ValueError,
            "depthwise_conv2d: the kernel size k must be 3, 5 or 7, got 1",
        ),
        "weight_of_higher_dtype": (
            {"weight": lambda t: t.double()},
            TypeError,
            "depthwise_conv2d: weight must be torch.float32, got torch.float64",
        ),
        "low_weight_of_another_dtype": (
            {
                "x": lambda t: t.bfloat16(),
                "weight": lambda t: t.half(),
            },
            TypeError,
            "depthwise_conv2d: weight must be torch.bfloat16 or torch.float32, got torch.float16",
        ),
        "low_weight_of_float64": (
            {"x": lambda t: t.double()},
            TypeError,
            "depthwise_conv2d: weight must be torch.float64, got torch.float32",
        ),
        "bias_of_other_size": (
            {"bias": torch.zeros(17, 1)},
            ValueError,
            "depthwise_conv2d: bias must be (C,) = (17,), got (17, 1)",
        ),
        "unknown_activation": (
            {"activation": "GELU"},
            ValueError,
            "depthwise_conv2d: activation must be one of none, gelu, got 'GELU'",
        ),
    }

    @staticmethod
    def build(
        shape: tuple[int, int, int, int] = (2, 17, 9, 11),
        k: int = 3,
        bias: bool = True,
        activation: str = "none",
    ) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        tensors = {
            "x": normal(*shape),
            "weight": normal(shape[1], 1, k, k) / k,
            "bias": normal(shape[1]) if bias else None,
        }
        return tensors, {"activation": activation}


@pytest.mark.parametrize("k", [3, 7])
def test_reference_is_the_formula(k: int) -> None:
    """The oracle itself, against shifted copies of the image."""
    tensors, _ = TestDepthwiseConv2d.build((2, 3, 4, 5), k=k)
    x, weight, bias = tensors["x"], tensors["weight"], tensors["bias"]
    padded = F.pad(x, [k // 2] * 4)
    expected = bias.view(1, -1, 1, 1).repeat(2, 1, 4, 5)
    for i in range(k):
        for j in range(k):
            expected += weight[:, 0, i, j].view(1, -1, 1, 1) * padded[:, :, i : i + 4, j : j + 5]
    y = ops.depthwise_conv2d(x, weight, bias, activation="gelu", backend="reference")
    torch.testing.assert_close(y, expected * 0.5 * (1 + torch.erf(expected / 2**0.5)))
