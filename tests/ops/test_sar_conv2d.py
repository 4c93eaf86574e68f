"""sar_conv2d on every backend, and what is special to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipweather_fast import ops
from op_tests import OpTests
from operands import mixed_kernels, normal

EVERYTHING = {"static": True, "gate": "softmax", "activation": "gelu", "residual": True}


class TestSarConv2d(OpTests):
    op = staticmethod(ops.sar_conv2d)
    activations = ("x", "logits")
    cases = {
        "plain": {"bias": False},
        "everything": EVERYTHING,
        "bias": {},
        "sigmoid": {"gate": "sigmoid", "residual": True},
        "ungated": {"gate": "none", "static": True},
        "gelu_without_static": {"activation": "gelu"},
        "static_without_bias": {"static": True, "static_bias": False, "activation": "gelu"},
        "one_kernel": {"kernels": 1, **EVERYTHING},
        "two_kernels": {"kernels": 2, **EVERYTHING},
        "eight_kernels": {"kernels": 8, **EVERYTHING},
        "eight_sigmoid": {"kernels": 8, "gate": "sigmoid", "activation": "gelu"},
        "five_by_five": {"k": 5, **EVERYTHING},
        "seven_by_seven": {"k": 7, "kernels": 2, **EVERYTHING},
        "one_channel": {"shape": (2, 1, 6, 7), **EVERYTHING},
        "three_channels": {"shape": (1, 3, 5, 4), **EVERYTHING},
        "many_channels": {"shape": (1, 64, 6, 9), **EVERYTHING},
        "channels_past_a_block": {"shape": (1, 130, 5, 6), **EVERYTHING},
        "wide": {"shape": (1, 8, 3, 67), **EVERYTHING},
        "tall": {"shape": (1, 8, 70, 2), **EVERYTHING},
        "no_channel": {"shape": (2, 0, 5, 6), **EVERYTHING},
        "one_pixel": {"shape": (2, 17, 1, 1), **EVERYTHING},
        "one_row": {"shape": (1, 16, 1, 9), **EVERYTHING},
        "one_column": {"shape": (1, 16, 9, 1), **EVERYTHING},
        "smaller_than_kernel": {"shape": (1, 5, 2, 3), "k": 7, **EVERYTHING},
        "no_image": {"shape": (0, 17, 5, 6), **EVERYTHING},
        "no_row": {"shape": (2, 3, 0, 5), **EVERYTHING},
        "no_column": {"shape": (2, 3, 5, 0), **EVERYTHING},
    }
    representative = ("plain", "everything")
    tiny = {
        "softmax": {"shape": (1, 2, 3, 4), "kernels": 2, **EVERYTHING},
        "sigmoid": {"shape": (1, 2, 3, 3), "kernels": 3, "gate": "sigmoid", "residual": True},
        "ungated": {"shape": (2, 1, 3, 3), "kernels": 2, "gate": "none", "activation": "gelu"},
        "five_by_five": {"shape": (1, 1, 4, 3), "kernels": 2, "k": 5, "static": True},
    }
    bad = {
        "x_is_a_list": (
            {"x": [1.0]},
            TypeError,
            "sar_conv2d: x must be a tensor, got list",
        ),
        "x_is_integer": (
            {"x": lambda x: x.int()},
            TypeError,
            "sar_conv2d: x must be float32, bfloat16, float16 or float64, got torch.int32; "
            "convert it with x.float()",
        ),
        "x_is_sparse": (
            {"x": lambda x: x.to_sparse()},
            TypeError,
            "sar_conv2d: x must be a strided (dense) tensor, got torch.sparse_coo",
        ),
        "x_has_three_axes": (
            {"x": lambda x: x[0]},
            ValueError,
            "sar_conv2d: x must be (N, C, H, W), got (17, 9, 11)",
        ),
        "logits_are_none": (
            {"logits": None},
            TypeError,
            "sar_conv2d: logits must be a tensor, got NoneType",
        ),
        "logits_too_small": (
            {"logits": lambda t: t[..., 1:]},
            ValueError,
            "sar_conv2d: logits must be (N, K, H, W) = (2, 3, 9, 11), got (2, 3, 9, 10)",
        ),
        "logits_of_another_dtype": (
            {"logits": lambda t: t.bfloat16()},
            TypeError,
            "sar_conv2d: logits must have the dtype of the first argument, torch.float32, "
            "got torch.bfloat16",
        ),
        "logits_elsewhere": (
            {"logits": lambda t: t.to("meta")},
            ValueError,
            "sar_conv2d: logits must be on the device of the first argument, cpu, got meta",
        ),
        "weight_is_one_kernel": (
            {"weight": lambda t: t[0]},
            ValueError,
            "sar_conv2d: weight must be (K, C, k, k) with C = 17, got (17, 3, 3)",
        ),
        "weight_of_other_channels": (
            {"weight": lambda t: t[:, 1:]},
            ValueError,
            "sar_conv2d: weight must be (K, C, k, k) with C = 17, got (3, 16, 3, 3)",
        ),
        "weight_not_square": (
            {"weight": lambda t: t[..., 1:]},
            ValueError,
            "sar_conv2d: weight must be (K, C, k, k) with C = 17, got (3, 17, 3, 2)",
        ),
        "no_kernel": (
            {"weight": lambda t: t[:0]},
            ValueError,
            "sar_conv2d: weight must hold K = 1 to 8 kernels, got K = 0",
        ),
        "nine_kernels": (
            {"weight": torch.zeros(9, 17, 3, 3)},
            ValueError,
            "sar_conv2d: weight must hold K = 1 to 8 kernels, got K = 9",
        ),
        "even_kernel": (
            {"weight": torch.zeros(3, 17, 4, 4)},
            ValueError,
            "sar_conv2d: the kernel size k must be 3, 5 or 7, got 4",
        ),
        "weight_of_low_dtype": (
            {"weight": lambda t: t.half()},
            TypeError,
            "sar_conv2d: weight must be torch.float32, got torch.float16",
        ),
        "bias_of_other_size": (
            {"bias": torch.zeros(17)},
            ValueError,
            "sar_conv2d: bias must be (K, C) = (3, 17), got (17,)",
        ),
        "static_weight_of_other_size": (
            {"static_weight": torch.zeros(17, 1, 5, 5)},
            ValueError,
            "sar_conv2d: static_weight must be (C, 1, k, k) = (17, 1, 3, 3), got (17, 1, 5, 5)",
        ),
        "static_bias_of_other_size": (
            {"static_weight": torch.zeros(17, 1, 3, 3), "static_bias": torch.zeros(16)},
            ValueError,
            "sar_conv2d: static_bias must be (C,) = (17,), got (16,)",
        ),
        "static_bias_alone": (
            {"static_bias": torch.zeros(17)},
            ValueError,
            "sar_conv2d: static_bias needs static_weight; pass both or neither",
        ),
        "unknown_gate": (
            {"gate": "tanh"},
            ValueError,
            "sar_conv2d: gate must be one of none, softmax, sigmoid, got 'tanh'",
        ),
        "gate_is_none": (
            {"gate": None},
            ValueError,
            "sar_conv2d: gate must be one of none, softmax, sigmoid, got None",
        ),
        "unknown_activation": (
            {"activation": "relu"},
            ValueError,
            "sar_conv2d: activation must be one of none, gelu, got 'relu'",
        ),
    }

    @staticmethod
    def build(
        shape: tuple[int, int, int, int] = (2, 17, 9, 11),
        kernels: int = 3,
        k: int = 3,
        bias: bool = True,
        static: bool = False,
        static_bias: bool = True,
        gate: str = "softmax",
        activation: str = "none",
        residual: bool = False,
    ) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        n, c, h, w = shape
        tensors = {
            "x": normal(*shape),
            "logits": normal(n, kernels, h, w) * 2,
            **mixed_kernels(c, kernels, k, bias, static),
        }
        if not static_bias:
            tensors["static_bias"] = None
        options = {"gate": gate, "activation": activation, "return_residual": residual}
        return tensors, options

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
    @pytest.mark.parametrize("gate", ["softmax", "sigmoid", "none"])
    def test_non_finite_logits(self, backend: str, device: str, gate: str, value: float) -> None:
        """They spoil the pixel they belong to and no other, in the output."""
        case = {**self.cases["everything"], "gate": gate}
        call = self.runnable(self.call(case, torch.float32, device), backend)
        spoilt = call.tensors["logits"].clone()
        spoilt[1, :, 4, 5] = value
        for y, clean in zip(
            call.with_tensors(logits=spoilt)(backend=backend), call(backend=backend), strict=True
        ):
            elsewhere = torch.ones(y.shape[0], *y.shape[2:], dtype=torch.bool, device=y.device)
            elsewhere[1, 4, 5] = False
            elsewhere = elsewhere.unsqueeze(1).expand_as(y)
            assert torch.equal(y[elsewhere], clean[elsewhere])
            if gate == "softmax" or value != value:
                assert y[1, :, 4, 5].isnan().all()

    def test_a_large_kernel_without_weight(
        self, backend: str, device: str, dtype: torch.dtype
    ) -> None:
        """What it is folded into must not lose the small one that has all the weight."""
        call = self.runnable(self.call({"shape": (1, 17, 5, 6)}, dtype, device), backend)
        tensors = {name: torch.zeros_like(t) for name, t in call.present.items()}
        tensors["x"] += 1
        tensors["logits"][:, 0] = 60
        tensors["weight"][0, :, 1, 1], tensors["weight"][2, :, 1, 1] = 1, 300
        y = call.with_tensors(**tensors)(backend=backend)[0]
        assert torch.equal(y, torch.ones_like(y))


@pytest.mark.parametrize("gate", ["softmax", "sigmoid", "none"])
@pytest.mark.parametrize("k", [3, 5])
def test_reference_is_the_formula(gate: str, k: int) -> None:
    """The oracle itself, against the equation written out pixel by pixel."""
    tensors, options = TestSarConv2d.build((2, 3, 4, 5), k=k, static=True, gate=gate)
    x, logits = tensors["x"], tensors["logits"]
    maps = {"softmax": logits.softmax(1), "sigmoid": logits.sigmoid(), "none": logits}[gate]
    padded = F.pad(x, [k // 2] * 4)
    expected = torch.empty_like(x)
    residual = torch.empty_like(x)
    for row in range(4):
        for column in range(5):
            window = padded[:, :, row : row + k, column : column + k]
            mixed = torch.einsum("ncij,kcij->nkc", window, tensors["weight"]) + tensors["bias"]
            residual[:, :, row, column] = (maps[:, :, row, column, None] * mixed).sum(1)
            static = torch.einsum("ncij,cij->nc", window, tensors["static_weight"][:, 0])
            static = static + tensors["static_bias"]
            expected[:, :, row, column] = static + residual[:, :, row, column]
    options |= {"activation": "gelu", "return_residual": True, "backend": "reference"}
    y, r = ops.sar_conv2d(**tensors, **options)
    torch.testing.assert_close(r, residual)
    torch.testing.assert_close(y, F.gelu(expected))
