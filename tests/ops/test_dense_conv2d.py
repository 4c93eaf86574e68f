"""dense_conv2d on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules._convolution import convolved
from clipweather_fast.ops import _native
from op_tests import OpTests
from operands import normal

UP = {"k": 4, "stride": 2, "padding": 1, "transposed": True}
SAME = {"k": 3, "padding": 1}


class TestDenseConv2d(OpTests):
    op = staticmethod(ops.dense_conv2d)
    activations = ("x",)
    cases = {
        "same": SAME,
        "up": UP,
        "embedding": {"k": 7, "stride": 4, "padding": 3},
        "halving": {"k": 3, "stride": 2, "padding": 1},
        "window": {"k": 2, "stride": 2},
        "pointwise": {"k": 1},
        "pointwise_transposed": {"k": 1, "transposed": True},
        "pointwise_of_many_channels": {"k": 1, "shape": (1, 48, 7, 9), "out": 40},
        "halving_of_many_channels": {
            "k": 3,
            "stride": 2,
            "padding": 1,
            "shape": (2, 33, 9, 8),
            "out": 35,
        },
        "up_without_padding": {"k": 3, "stride": 2, "transposed": True},
        "up_with_gaps_filled": {"k": 5, "stride": 3, "padding": 2, "transposed": True},
        "wide_padding": {"k": 3, "padding": 2},
        "same_without_bias": {**SAME, "bias": False},
        "up_without_bias": {**UP, "bias": False},
        "embedding_without_bias": {"k": 7, "stride": 4, "padding": 3, "bias": False},
        "same_of_channels_past_a_block": {**SAME, "shape": (1, 33, 5, 4), "out": 19},
        "same_of_even_sides": {**SAME, "shape": (2, 16, 4, 6), "out": 16},
        "same_of_one_pixel": {**SAME, "shape": (2, 17, 1, 1)},
        "up_from_one_pixel": {**UP, "shape": (2, 17, 1, 1)},
        "same_of_one_row": {**SAME, "shape": (1, 6, 1, 9)},
        "same_of_one_channel": {**SAME, "shape": (1, 1, 6, 7), "out": 1},
        # Beyond 128 pixels AMX, too, computes these by Winograd's tiles.
        "same_of_many_pixels": {**SAME, "shape": (2, 5, 9, 8), "out": 6},
        "same_of_many_pixels_and_odd_sides": {**SAME, "shape": (1, 33, 13, 11), "out": 19},
        "same_of_a_long_row": {**SAME, "shape": (3, 17, 1, 47), "out": 4},
        # As the AMX path, with all points in memory.
        "same_of_too_many_channels": {**SAME, "shape": (1, 1, 2, 3), "out": 4100},
        # More than what is at Winograd's points at once: tiles, channels read, gradients given.
        "same_of_many_tiles": {**SAME, "shape": (2, 5, 35, 36), "out": 6},
        "same_of_many_channels": {**SAME, "shape": (1, 131, 5, 6), "out": 124},
        "same_of_many_given_channels": {**SAME, "shape": (1, 3, 21, 18), "out": 1020},
        # With multiples of 32 channels windows are never in memory, but for float32 by AMX.
        "halving_of_whole_panels": {
            "k": 3,
            "stride": 2,
            "padding": 1,
            "shape": (2, 32, 7, 10),
            "out": 64,
        },
        "up_of_whole_panels": {**UP, "shape": (2, 64, 5, 3), "out": 32},
        "up_of_many_whole_panels": {**UP, "shape": (1, 96, 4, 4), "out": 96, "bias": False},
        "up_from_one_pixel_of_whole_panels": {**UP, "shape": (1, 32, 1, 1), "out": 32},
        "embedding_of_whole_panels": {
            "k": 7,
            "stride": 4,
            "padding": 3,
            "shape": (1, 32, 13, 10),
            "out": 32,
        },
        "uneven_phases_of_whole_panels": {
            "k": 5,
            "stride": 3,
            "padding": 2,
            "transposed": True,
            "shape": (2, 32, 3, 4),
            "out": 32,
        },
        "padding_beyond_windows_of_whole_panels": {
            "k": 4,
            "stride": 2,
            "padding": 3,
            "shape": (1, 32, 1, 9),
            "out": 32,
        },
        "no_image": {**SAME, "shape": (0, 17, 5, 6)},
    }
    representative = ("same", "up", "same_of_many_pixels")
    tiny = {
        "same": {**SAME, "shape": (1, 2, 3, 3), "out": 2},
        "up": {**UP, "shape": (1, 2, 2, 2), "out": 1},
        "halving": {"k": 3, "stride": 2, "padding": 1, "shape": (1, 2, 3, 4), "out": 2},
    }
    bad = {
        "x_is_a_number": ({"x": 1.0}, TypeError, "dense_conv2d: x must be a tensor, got float"),
        "x_has_three_axes": (
            {"x": lambda x: x[0]},
            ValueError,
            "dense_conv2d: x must be (N, C, H, W), got (5, 7, 6)",
        ),
        "weight_of_other_channels": (
            {"weight": torch.zeros(4, 6, 3, 3)},
            ValueError,
            "dense_conv2d: weight must be (C', C, k, k) with C = 5, got (4, 6, 3, 3)",
        ),
        "transposed_weight_of_other_channels": (
            {"weight": torch.zeros(4, 5, 3, 3), "transposed": True},
            ValueError,
            "dense_conv2d: weight must be (C, C', k, k) with C = 5, got (4, 5, 3, 3)",
        ),
        "weight_not_square": (
            {"weight": torch.zeros(4, 5, 3, 1)},
            ValueError,
            "dense_conv2d: weight must be (C', C, k, k) with C = 5, got (4, 5, 3, 1)",
        ),
        "kernel_too_large": (
            {"weight": torch.zeros(4, 5, 17, 17)},
            ValueError,
            "dense_conv2d: the kernel size k must be 1 to 16, got 17",
        ),
        "bias_of_other_size": (
            {"bias": torch.zeros(5)},
            ValueError,
            "dense_conv2d: bias must be (C',) = (4,), got (5,)",
        ),
        "stride_leaves_gaps": (
            {"stride": 4},
            ValueError,
            "dense_conv2d: stride must be 1 to k = 3, got 4",
        ),
        "padding_is_wider": (
            {"padding": 3},
            ValueError,
            "dense_conv2d: padding must be 0 to k - 1 = 2, got 3",
        ),
        "no_room_for_a_window": (
            {"x": lambda x: x[:, :, :2], "padding": 0},
            ValueError,
            "dense_conv2d: x must have sides whose result has at least one pixel, got 2 and 6 for "
            "k = 3 and padding = 0",
        ),
        "weight_of_higher_dtype": (
            {"weight": lambda t: t.double()},
            TypeError,
            "dense_conv2d: weight must be torch.float32, got torch.float64",
        ),
    }

    @staticmethod
    def build(
        shape: tuple[int, int, int, int] = (2, 5, 7, 6),
        out: int = 4,
        k: int = 3,
        stride: int = 1,
        padding: int = 0,
        transposed: bool = False,
        bias: bool = True,
    ) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        channels = (shape[1], out) if transposed else (out, shape[1])
        tensors = {
            "x": normal(*shape),
            "weight": normal(*channels, k, k) / (k * shape[1] ** 0.5),
            "bias": normal(out) if bias else None,
        }
        return tensors, {"stride": stride, "padding": padding, "transposed": transposed}

    def test_gpu_backends_refuse_float64(self) -> None:
        """They refuse everything: there is no kernel."""
        call = self.call(self.representative[0], torch.float64)
        answers = ops.explain(self.op, **call.tensors, **call.options)
        for name in ("cuda", "triton"):
            assert answers[name] == "PyTorch's convolution serves GPUs"


def test_reference_is_the_formula() -> None:
    """The oracle itself, pixel by pixel; and transposed it is the other one's gradient."""
    x, weight, bias = normal(1, 2, 4, 5), normal(3, 2, 3, 3), normal(3)
    expected = bias.view(1, 3, 1, 1).repeat(1, 1, 2, 3)
    framed = F.pad(x, [1] * 4)
    for i in range(2):
        for j in range(3):
            window = framed[:, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
            expected[:, :, i, j] += (window[:, None] * weight).sum((2, 3, 4))
    y = ops.dense_conv2d(x, weight, bias, stride=2, padding=1, backend="reference")
    torch.testing.assert_close(y, expected)

    x, weight, given = normal(1, 3, 2, 3), normal(3, 2, 4, 4), normal(1, 2, 4, 6).requires_grad_()
    up = {"stride": 2, "padding": 1, "backend": "reference"}
    (expected,) = torch.autograd.grad(ops.dense_conv2d(given, weight, **up), given, x)
    y = ops.dense_conv2d(x, weight, transposed=True, **up)
    torch.testing.assert_close(y, expected)


@pytest.mark.parametrize(
    ("shape", "weight", "options", "chosen", "by_amx"),
    [
        ((4, 64, 8, 8), (64, 64, 3, 3), {"padding": 1}, "cpu", "cpu"),
        ((4, 64, 512, 512), (64, 64, 3, 3), {"padding": 1}, "cpu", "reference"),  # 1 GiB of tiles
        ((4, 32, 8, 8), (48, 32, 3, 3), {"padding": 1}, "cpu", "reference"),
        ((4, 24, 8, 8), (64, 24, 3, 3), {"padding": 1}, "reference", "reference"),
        ((1, 64, 8, 8), (5000, 64, 3, 3), {"padding": 1}, "cpu", "cpu"),
        ((4, 16, 8, 8), (16, 16, 3, 3), {"padding": 1}, "reference", "reference"),
        ((4, 512, 2, 2), (512, 64, 4, 4), {**UP, "k": None}, "cpu", "cpu"),
        ((4, 512, 8, 8), (512, 64, 4, 4), {**UP, "k": None}, "reference", "cpu"),
        ((4, 512, 64, 64), (512, 64, 4, 4), {**UP, "k": None}, "reference", "reference"),
        ((4, 64, 8, 8), (64, 64, 3, 3), {"stride": 2, "padding": 1}, "cpu", "cpu"),
        ((4, 256, 8, 8), (256, 256, 1, 1), {}, "reference", "cpu"),
        ((4, 8, 8, 8), (256, 8, 1, 1), {}, "reference", "reference"),
        ((4, 512, 2, 2), (512, 512, 1, 1), {}, "reference", "cpu"),
        ((4, 512, 2, 1), (1024, 512, 1, 1), {}, "reference", "reference"),
    ],
)
@pytest.mark.parametrize("amx", [False, True])
def test_the_cpu_kernels_are_chosen_where_they_win(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    options: dict[str, Any],
    chosen: str,
    by_amx: str,
    amx: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_native, "matrix_unit", lambda: amx)
    monkeypatch.setattr(_native, "wide_vectors", lambda: False)
    options = {name: value for name, value in options.items() if value is not None}
    answers = ops.explain(ops.dense_conv2d, torch.empty(shape), torch.empty(weight), **options)
    if not answers["cpu"].startswith("yes"):
        pytest.skip(answers["cpu"])
    assert answers[by_amx if amx else chosen] == "yes (chosen)"


@pytest.mark.parametrize(
    ("channels", "side", "dtype", "learns", "wide", "chosen"),
    [
        (64, 11, torch.float32, True, True, "cpu"),
        (64, 11, torch.float32, True, False, "reference"),
        (64, 11, torch.float32, False, True, "reference"),
        (64, 11, torch.float64, True, True, "reference"),
        (64, 8, torch.float32, True, True, "cpu"),
        (64, 12, torch.float32, True, True, "reference"),
        (72, 11, torch.float32, True, True, "reference"),
        (32, 11, torch.float32, True, True, "reference"),
    ],
)
def test_windows_that_are_never_in_memory_are_chosen_where_they_win(
    channels: int,
    side: int,
    dtype: torch.dtype,
    learns: bool,
    wide: bool,
    chosen: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_native, "matrix_unit", lambda: False)
    monkeypatch.setattr(_native, "wide_vectors", lambda: wide)
    x = torch.empty(4, 64, side, side, dtype=dtype)
    weight = torch.empty(64, channels, 4, 4, dtype=dtype)
    with torch.set_grad_enabled(learns):
        answers = ops.explain(ops.dense_conv2d, x, weight, transposed=True, stride=2, padding=1)
    if not answers["cpu"].startswith("yes"):
        pytest.skip(answers["cpu"])
    assert answers[chosen] == "yes (chosen)"


def test_what_is_never_in_memory_is_the_same_on_any_number_of_threads() -> None:
    if _native.why_not_loaded():
        pytest.skip(_native.why_not_loaded() or "")
    torch.manual_seed(0)
    # More rows than are packed at once, and more tiles.
    x = torch.randn(2, 64, 34, 34, requires_grad=True)
    layers = (
        nn.Conv2d(64, 96, 3, stride=2, padding=1),
        nn.ConvTranspose2d(64, 96, 4, 2, 1),
        nn.Conv2d(64, 250, 3, padding=1),
    )
    threads = torch.get_num_threads()
    for layer in layers:
        found = []
        for number in (1, 2, 5):
            torch.set_num_threads(number)
            try:
                y = ops.dense_conv2d(
                    x,
                    layer.weight,
                    layer.bias,
                    stride=layer.stride[0],
                    padding=1,
                    transposed=isinstance(layer, nn.ConvTranspose2d),
                    backend="cpu",
                )
                grads = torch.autograd.grad(y, (x, layer.weight), torch.cos(y))
            finally:
                torch.set_num_threads(threads)
            found.append((y, *grads))
        for others in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


def test_layers_with_hooks_are_called() -> None:
    layer, seen = nn.Conv2d(3, 4, 3, padding=1), []
    x = torch.randn(1, 3, 5, 5)
    quiet = convolved(x, layer)
    layer.register_forward_hook(lambda *call: seen.append(call))
    torch.testing.assert_close(convolved(x, layer), quiet)
    assert len(seen) == 1


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding="same"),
        nn.Conv2d(4, 4, (3, 1)),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(4, 4, 3, dilation=2),
        nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, output_padding=1),
    ],
)
def test_layers_of_other_kinds_are_called(layer: nn.Conv2d | nn.ConvTranspose2d) -> None:
    x = torch.randn(1, 4, 7, 7)
    assert torch.equal(convolved(x, layer), layer(x))


@pytest.mark.parametrize("side", [4, 32])
def test_under_autocast_a_weight_that_bounds_the_time_is_not_rounded(side: int) -> None:
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(64, 80, 4, stride=2, padding=1)
    x = torch.randn(2, 64, side, side, dtype=torch.bfloat16, requires_grad=True)
    exact = F.conv_transpose2d(x.double(), layer.weight.double(), layer.bias.double(), 2, 1)
    with torch.autocast("cpu", torch.bfloat16):
        y, usual = convolved(x, layer), layer(x)
    assert y.dtype == usual.dtype == torch.bfloat16
    errors = [(found - exact).abs().max().item() for found in (y, usual, exact.bfloat16())]
    if side == 4 and _native.why_not_loaded() is None:
        assert errors[0] <= errors[2] * 1.01
    assert errors[0] <= errors[1]
    grads = torch.autograd.grad(y.float().square().sum(), (x, layer.weight, layer.bias))
    assert [grad.dtype for grad in grads] == [torch.bfloat16, torch.float32, torch.float32]
    assert all(grad.isfinite().all() for grad in grads)
