"""sar_mixer on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from call import results
from clipweather_fast import ops
from op_tests import OpTests
from operands import mixed_kernels, normal, predictor
from tolerance import assert_as_good_as_reference


class TestSarMixer(OpTests):
    op = staticmethod(ops.sar_mixer)
    activations = ("z",)
    saves_results = True  # the K maps
    cases = {
        "everything": {"residual": True},
        "without_static": {"static": False, "bias": False},
        "plain": {},
        "sigmoid": {"gate": "sigmoid", "residual": True},
        "ungated": {"gate": "none"},
        "one_kernel": {"kernels": 1, "residual": True},
        "two_kernels": {"kernels": 2},
        "eight_kernels": {"kernels": 8, "residual": True},
        "five_by_five": {"k": 5, "residual": True},
        "seven_by_seven": {"k": 7, "kernels": 2},
        "one_channel": {"shape": (2, 1, 6, 7), "residual": True},
        "three_channels": {"shape": (1, 3, 5, 4), "residual": True},
        "many_channels": {"shape": (1, 64, 6, 9), "residual": True},
        "channels_past_a_block": {"shape": (1, 130, 5, 6)},
        "wide": {"shape": (1, 8, 3, 67), "residual": True},
        "tall": {"shape": (1, 8, 70, 2)},
        "one_pixel": {"shape": (2, 17, 1, 1), "residual": True},
        "one_row": {"shape": (1, 16, 1, 9)},
        "one_column": {"shape": (1, 16, 9, 1)},
        "smaller_than_kernel": {"shape": (1, 5, 2, 3), "k": 7},
        "no_image": {"shape": (0, 17, 5, 6), "residual": True},
        "no_row": {"shape": (2, 3, 0, 5), "residual": True},
        "no_column": {"shape": (2, 3, 5, 0)},
    }
    representative = ("everything", "without_static")
    tiny = {
        "softmax": {"shape": (1, 2, 3, 3), "kernels": 2, "residual": True},
        "sigmoid": {"shape": (1, 2, 2, 3), "kernels": 3, "gate": "sigmoid"},
        "ungated": {"shape": (2, 1, 3, 2), "kernels": 1, "gate": "none", "static": False},
    }
    bad = {
        "z_is_a_string": (
            {"z": "z"},
            TypeError,
            "sar_mixer: z must be a tensor, got str",
        ),
        "z_is_complex": (
            {"z": lambda z: z.to(torch.complex64)},
            TypeError,
            "sar_mixer: z must be float32, bfloat16, float16 or float64, got torch.complex64; "
            "convert it with z.float()",
        ),
        "z_has_two_axes": (
            {"z": lambda z: z[0, 0]},
            ValueError,
            "sar_mixer: z must be (N, C, H, W), got (9, 11)",
        ),
        "depthwise_weight_is_none": (
            {"depthwise_weight": None},
            TypeError,
            "sar_mixer: depthwise_weight must be a tensor, got NoneType",
        ),
        "depthwise_weight_of_other_size": (
            {"depthwise_weight": torch.zeros(16, 1, 3, 3)},
            ValueError,
            "sar_mixer: depthwise_weight must be (C, 1, 3, 3) = (17, 1, 3, 3), got (16, 1, 3, 3)",
        ),
        "weight_is_none": (
            {"weight": None},
            TypeError,
            "sar_mixer: weight must be a tensor, got NoneType",
        ),
        "weight_of_other_channels": (
            {"weight": torch.zeros(3, 16, 3, 3)},
            ValueError,
            "sar_mixer: weight must be (K, C, k, k) with C = 17, got (3, 16, 3, 3)",
        ),
        "another_count_of_maps": (
            {"pointwise_weight": torch.zeros(2, 17, 1, 1), "pointwise_bias": torch.zeros(2)},
            ValueError,
            "sar_mixer: pointwise_weight must give one map per kernel, K = 3, got K = 2",
        ),
        "static_bias_alone": (
            {"static_weight": None},
            ValueError,
            "sar_mixer: static_bias needs static_weight; pass both or neither",
        ),
        "static_weight_elsewhere": (
            {"static_weight": lambda t: t.to("meta")},
            ValueError,
            "sar_mixer: static_weight must be on the device of the first argument, cpu, got meta",
        ),
        "weight_of_low_dtype": (
            {"weight": lambda t: t.half()},
            TypeError,
            "sar_mixer: weight must be torch.float32, got torch.float16",
        ),
        "unknown_gate": (
            {"gate": "softmin"},
            ValueError,
            "sar_mixer: gate must be one of none, softmax, sigmoid, got 'softmin'",
        ),
    }

    @staticmethod
    def build(
        shape: tuple[int, int, int, int] = (2, 17, 9, 11),
        kernels: int = 3,
        k: int = 3,
        bias: bool = True,
        static: bool = True,
        gate: str = "softmax",
        residual: bool = False,
    ) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        tensors = {
            "z": normal(*shape),
            **predictor(shape[1], kernels),
            **mixed_kernels(shape[1], kernels, k, bias, static),
        }
        return tensors, {"gate": gate, "return_residual": residual}

    def test_is_its_composition(self, backend: str, device: str, dtype: torch.dtype) -> None:
        """sar_mixer is sar_logits followed by sar_conv2d, in values and in every gradient."""
        call = self.runnable(self.call("everything", dtype, device), backend)

        def composed(
            z: Tensor,
            depthwise_weight: Tensor,
            depthwise_bias: Tensor,
            pointwise_weight: Tensor,
            pointwise_bias: Tensor,
            weight: Tensor,
            bias: Tensor,
            **rest: Any,
        ) -> Any:
            predictor = (depthwise_weight, depthwise_bias, pointwise_weight, pointwise_bias)
            logits = ops.sar_logits(z, *predictor, backend="reference")
            return ops.sar_conv2d(z, logits, weight, bias, activation="gelu", **rest)

        def run_composed(c: Any) -> Any:
            whole = type(c)(composed, c.tensors, c.options, c.activations)
            return results(whole, backend="reference")

        assert_as_good_as_reference(results(call, backend=backend), call, run_composed)


def test_reference_is_the_formula() -> None:
    """The oracle itself, against the equations of the paper written with PyTorch's convolutions."""
    tensors, _ = TestSarMixer.build((1, 4, 5, 6))
    z = tensors["z"]

    def depthwise(weight: Tensor, bias: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(z, weight, bias, padding=1, groups=4)

    gelu = torch.nn.functional.gelu
    hidden = gelu(depthwise(tensors["depthwise_weight"], tensors["depthwise_bias"]))
    logits = torch.einsum("nchw,kc->nkhw", hidden, tensors["pointwise_weight"][..., 0, 0])
    maps = (logits + tensors["pointwise_bias"].view(1, -1, 1, 1)).softmax(1)
    residual = sum(
        maps[:, n : n + 1] * depthwise(tensors["weight"][n].unsqueeze(1), tensors["bias"][n])
        for n in range(3)
    )
    static = depthwise(tensors["static_weight"], tensors["static_bias"])
    y, r = ops.sar_mixer(**tensors, return_residual=True, backend="reference")
    torch.testing.assert_close(r, residual)
    torch.testing.assert_close(y, gelu(static + residual))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_input_stays_near(value: float, dtype: torch.dtype) -> None:
    """A spoilt pixel reaches its neighbours through the two convolutions, and nothing further."""
    tensors, options = TestSarMixer.build((1, 6, 9, 11))
    tensors = {name: t if t is None else t.float() for name, t in tensors.items()}
    tensors["z"] = tensors["z"].to(dtype)
    spoilt = tensors["z"].clone()
    spoilt[0, 2, 4, 5] = value
    clean = ops.sar_mixer(**tensors, **options)
    y = ops.sar_mixer(**{**tensors, "z": spoilt}, **options)
    near = torch.zeros_like(y, dtype=torch.bool)
    near[:, :, 3:6, 4:7] = True
    assert torch.equal(y[~near], clean[~near])
    assert not y[0, 2, 4, 5].isfinite()
