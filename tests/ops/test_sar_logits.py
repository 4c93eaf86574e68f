"""sar_logits on every backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipweather_fast import ops
from op_tests import OpTests
from operands import normal, predictor


class TestSarLogits(OpTests):
    op = staticmethod(ops.sar_logits)
    activations = ("x",)
    cases = {
        "three_maps": {},
        "one_map": {"kernels": 1},
        "two_maps": {"kernels": 2},
        "eight_maps": {"kernels": 8},
        "one_channel": {"shape": (2, 1, 6, 7)},
        "three_channels": {"shape": (1, 3, 5, 4)},
        "many_channels": {"shape": (1, 64, 6, 9)},
        "channels_past_a_block": {"shape": (1, 130, 5, 6)},
        "wide": {"shape": (1, 8, 3, 67)},
        "tall": {"shape": (1, 8, 70, 2)},
        "one_pixel": {"shape": (2, 17, 1, 1)},
        "one_row": {"shape": (1, 16, 1, 9)},
        "one_column": {"shape": (1, 16, 9, 1)},
        "no_image": {"shape": (0, 17, 5, 6)},
        "no_channel": {"shape": (2, 0, 5, 6)},
        "no_row": {"shape": (2, 3, 0, 5)},
        "no_column": {"shape": (2, 3, 5, 0)},
    }
    representative = ("three_maps", "many_channels")
    tiny = {
        "two_maps": {"shape": (1, 3, 3, 4), "kernels": 2},
        "one_map": {"shape": (2, 1, 3, 2), "kernels": 1},
    }
    bad = {
        "x_is_none": (
            {"x": None},
            TypeError,
            "sar_logits: x must be a tensor, got NoneType",
        ),
        "x_is_boolean": (
            {"x": lambda x: x > 0},
            TypeError,
            "sar_logits: x must be float32, bfloat16, float16 or float64, got torch.bool; "
            "convert it with x.float()",
        ),
        "x_is_tokens": (
            {"x": lambda x: x.flatten(2)},
            ValueError,
            "sar_logits: x must be (N, C, H, W), got (2, 17, 99)",
        ),
        "depthwise_weight_of_other_size": (
            {"depthwise_weight": torch.zeros(17, 1, 5, 5)},
            ValueError,
            "sar_logits: depthwise_weight must be (C, 1, 3, 3) = (17, 1, 3, 3), got (17, 1, 5, 5)",
        ),
        "depthwise_bias_is_none": (
            {"depthwise_bias": None},
            TypeError,
            "sar_logits: depthwise_bias must be a tensor, got NoneType",
        ),
        "depthwise_bias_of_other_size": (
            {"depthwise_bias": torch.zeros(3)},
            ValueError,
            "sar_logits: depthwise_bias must be (C,) = (17,), got (3,)",
        ),
        "pointwise_weight_is_a_matrix": (
            {"pointwise_weight": lambda t: t[..., 0, 0]},
            ValueError,
            "sar_logits: pointwise_weight must be (K, C, 1, 1) with C = 17, got (3, 17)",
        ),
        "pointwise_weight_of_other_channels": (
            {"pointwise_weight": torch.zeros(3, 16, 1, 1)},
            ValueError,
            "sar_logits: pointwise_weight must be (K, C, 1, 1) with C = 17, got (3, 16, 1, 1)",
        ),
        "no_map": (
            {"pointwise_weight": lambda t: t[:0]},
            ValueError,
            "sar_logits: pointwise_weight must give K = 1 to 8 maps, got K = 0",
        ),
        "nine_maps": (
            {"pointwise_weight": torch.zeros(9, 17, 1, 1)},
            ValueError,
            "sar_logits: pointwise_weight must give K = 1 to 8 maps, got K = 9",
        ),
        "pointwise_bias_of_other_size": (
            {"pointwise_bias": torch.zeros(4)},
            ValueError,
            "sar_logits: pointwise_bias must be (K,) = (3,), got (4,)",
        ),
        "pointwise_bias_of_low_dtype": (
            {"pointwise_bias": lambda t: t.bfloat16()},
            TypeError,
            "sar_logits: pointwise_bias must be torch.float32, got torch.bfloat16",
        ),
        "parameters_elsewhere": (
            {"pointwise_bias": lambda t: t.to("meta")},
            ValueError,
            "sar_logits: pointwise_bias must be on the device of the first argument, cpu, got meta",
        ),
    }

    @staticmethod
    def build(
        shape: tuple[int, int, int, int] = (2, 17, 9, 11), kernels: int = 3
    ) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        return {"x": normal(*shape), **predictor(shape[1], kernels)}, {}


def test_reference_is_the_formula() -> None:
    """The oracle itself, with the 1×1 convolution written as a sum over channels."""
    tensors, _ = TestSarLogits.build((2, 5, 4, 3))
    hidden = ops.depthwise_conv2d(
        tensors["x"],
        tensors["depthwise_weight"],
        tensors["depthwise_bias"],
        activation="gelu",
        backend="reference",
    )
    mixed = torch.einsum("nchw,kc->nkhw", hidden, tensors["pointwise_weight"][..., 0, 0])
    expected = mixed + tensors["pointwise_bias"].view(1, -1, 1, 1)
    torch.testing.assert_close(ops.sar_logits(**tensors, backend="reference"), expected)
