"""The convolutions of the frozen form, each way of computing them, against float64."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from child import environment, why_not_isa
from clipweather_fast.models import _frozen
from clipweather_fast.models._conv_decoder import Residual
from clipweather_fast.models._frozen_convolution import FrozenConv, FrozenUp
from clipweather_fast.models._frozen_decoder import FrozenResidual
from clipweather_fast.models._frozen_direct import Direct
from clipweather_fast.models._frozen_windows import Windows
from clipweather_fast.models._frozen_winograd import Kind, Winograd
from clipweather_fast.ops import _native
from clipweather_fast.ops._direct import observed
from clipweather_fast.ops._native import matrix_unit
from tolerance import ULPS, largest, largest_error

pytestmark = pytest.mark.skipif(
    _frozen._why_not(torch.float32) is not None, reason=str(_frozen._why_not(torch.float32))
)
BFLOAT16 = torch.bfloat16
needs_bfloat16 = pytest.mark.skipif(
    _frozen._why_not(torch.bfloat16) is not None, reason=str(_frozen._why_not(torch.bfloat16))
)
needs_matrix_unit = pytest.mark.skipif(not matrix_unit(), reason="there is no matrix unit")


@pytest.fixture(autouse=True)
def as_where_pairs_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every processor tests what is only faster on some."""
    monkeypatch.setattr(_native, "pairs_pay", lambda: True)


def image(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)


def layer(
    kind: type[nn.Conv2d | nn.ConvTranspose2d], *arguments: int, bias: bool = True
) -> nn.Module:
    torch.manual_seed(0)
    return kind(*arguments, bias=bias).requires_grad_(False)


def check(got: Tensor, module: nn.Module, x: Tensor, *skip: Tensor) -> None:
    """The one tolerance rule."""
    dtype = got.dtype
    own = sum(skip, module.to(dtype)(x))
    truth = sum((s.double() for s in skip), copy.deepcopy(module).double()(x.double()))
    assert got.shape == truth.shape
    unit = torch.finfo(dtype).eps * largest(truth)
    assert largest_error(got, truth) <= 2 * largest_error(own, truth) + ULPS * unit


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "out_channels", "n", "h", "w"),
    [
        (16, 24, 2, 9, 13),
        (32, 48, 1, 8, 8),
        (17, 33, 1, 5, 6),
        (40, 8, 3, 1, 2),
        (18, 16, 1, 50, 41),
    ],
)
def test_strided_winograd(
    channels: int, out_channels: int, n: int, h: int, w: int, bias: bool
) -> None:
    module, x = (
        layer(nn.Conv2d, channels, out_channels, 3, 2, 1, bias=bias),
        image(n, channels, h, w),
    )
    conv = FrozenConv(module, torch.float32)
    check(conv(x), module, x)
    check(conv(x, "relu"), nn.Sequential(module, nn.ReLU()), x)
    assert set(conv.layer.forms.made) == {2}


@pytest.mark.parametrize("stride", [1, 2])
def test_weights_that_broke_are_seen_behind_a_relu(stride: int) -> None:
    module, x = layer(nn.Conv2d, 16, 16, 3, stride, 1), image(1, 16, 18, 22)
    module.bias[3] = torch.nan
    y = FrozenConv(module, torch.float32)(x, "relu")
    assert y[:, 3].isnan().all()
    assert not y[:, :3].isnan().any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("channels", "out_channels", "n", "h", "w"),
    [(16, 8, 2, 5, 7), (33, 20, 1, 4, 4), (17, 40, 1, 1, 1), (20, 16, 1, 31, 20)],
)
def test_transposed_winograd(
    channels: int, out_channels: int, n: int, h: int, w: int, bias: bool
) -> None:
    module = layer(nn.ConvTranspose2d, channels, out_channels, 4, 2, 1, bias=bias)
    x, up = image(n, channels, h, w), FrozenUp(module, torch.float32)
    check(up(x), module, x)
    assert set(up.layer.forms.made) == {2}


@pytest.mark.parametrize(
    ("channels", "n", "h", "w", "tile"),
    [
        (20, 1, 5, 7, 2),
        (64, 2, 3, 1, 2),
        (16, 2, 21, 30, 4),
        (33, 1, 64, 61, 4),
        (80, 1, 32, 48, 4),
    ],
)
def test_residuals_by_winograd(channels: int, n: int, h: int, w: int, tile: int) -> None:
    torch.manual_seed(0)
    module, x = Residual(channels).requires_grad_(False), image(n, channels, h, w)
    skip, frozen = torch.rand_like(x), FrozenResidual(module, torch.float32)
    check(frozen(x.clone(memory_format=torch.preserve_format)), module, x)
    total = x.clone(memory_format=torch.preserve_format)
    got = frozen(total, skip)
    assert got.data_ptr() == total.data_ptr()
    check(got, module, x, skip)
    assert set(frozen.conv1.layer.forms.made) == set(frozen.conv2.layer.forms.made) == {tile}


def test_every_image_has_its_tile() -> None:
    module = layer(nn.Conv2d, 16, 16, 3, 1, 1)
    conv = FrozenConv(module, torch.float32)
    for side in (6, 40, 6):
        check(conv(image(1, 16, side, side)), module, image(1, 16, side, side))
    assert set(conv.layer.forms.made) == {2, 4}


def test_few_channels_are_left_to_onednn() -> None:
    module, x = Residual(8).requires_grad_(False), image(1, 8, 9, 9)
    frozen, skip = FrozenResidual(module, torch.float32), torch.rand_like(x)
    check(frozen(x.clone(memory_format=torch.preserve_format), skip), module, x, skip)
    up = layer(nn.ConvTranspose2d, 8, 5, 4, 2, 1)
    check(FrozenUp(up, torch.float32)(x), up, x)
    assert set(frozen.conv1.layer.forms.made) == {"oneDNN"}


@needs_bfloat16
@pytest.mark.parametrize(("channels", "form"), [(40, 2), (66, 2), (24, "oneDNN"), (33, "oneDNN")])
def test_bfloat16_by_winograd(channels: int, form: int | str) -> None:
    torch.manual_seed(0)
    module, x = Residual(channels).requires_grad_(False), image(2, channels, 13, 17, dtype=BFLOAT16)
    frozen, skip = FrozenResidual(module, BFLOAT16), torch.rand_like(x)
    check(frozen(x.clone(memory_format=torch.preserve_format), skip), module, x, skip)
    module, x = layer(nn.Conv2d, channels, 40, 3, 2, 1), image(2, channels, 5, 6, dtype=BFLOAT16)
    down = FrozenConv(module, BFLOAT16)
    check(down(x), module, x)
    module = layer(nn.ConvTranspose2d, channels, 24, 4, 2, 1)
    up = FrozenUp(module, BFLOAT16)
    check(up(x), module, x)
    for conv in (frozen.conv1, frozen.conv2, down, up):
        assert set(conv.layer.forms.made) == {form}


@pytest.mark.parametrize("dtype", [torch.float32, BFLOAT16])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("n", "h", "w"), [(1, 4, 4), (2, 5, 7), (3, 1, 3), (1, 9, 3)])
def test_windows(n: int, h: int, w: int, bias: bool, dtype: torch.dtype) -> None:
    """Which every instruction set computes, though only a matrix unit gains."""
    x = image(n, 24, h, w, dtype=dtype)
    down = layer(nn.Conv2d, 24, 32, 3, 2, 1, bias=bias)
    check(Windows(down.weight, down.bias, Kind.DOWN, dtype)(x), down, x)
    up = layer(nn.ConvTranspose2d, 24, 16, 4, 2, 1, bias=bias)
    check(Windows(up.weight, up.bias, Kind.UP, dtype)(x), up, x)


@pytest.mark.parametrize(("h", "w"), [(9, 2), (3, 2), (9, 1), (1, 1)])
def test_windows_one_pixel_wide(h: int, w: int) -> None:
    """oneDNN's result for these is no measure: with AMX some versions read beyond the image."""
    module, x = layer(nn.Conv2d, 256, 32, 3, 2, 1), image(1, 256, h, w, dtype=BFLOAT16)
    module = module.to(BFLOAT16)
    got = Windows(module.weight, module.bias, Kind.DOWN, BFLOAT16)(x)
    truth = copy.deepcopy(module).double()(x.double())
    assert largest_error(got, truth) <= torch.finfo(BFLOAT16).eps * largest(truth)


@needs_matrix_unit
@pytest.mark.parametrize(
    ("dtype", "least"), [(torch.float32, 256), pytest.param(BFLOAT16, 64, marks=needs_bfloat16)]
)
def test_small_images_go_by_windows(dtype: torch.dtype, least: int) -> None:
    module, x = layer(nn.Conv2d, least, 32, 3, 2, 1), image(1, least, 16, 16, dtype=dtype)
    down = FrozenConv(module, dtype)
    check(down(x), module, x)
    assert set(down.layer.forms.made) == {"windows"}
    check(down(x, "relu"), nn.Sequential(module, nn.ReLU()), x)
    assert set(down.layer.forms.made) == {"windows", 2}
    module, x = layer(nn.ConvTranspose2d, 256, 32, 4, 2, 1), image(1, 256, 4, 4, dtype=dtype)
    up = FrozenUp(module, dtype)
    check(up(x), module, x)
    assert set(up.layer.forms.made) == {"windows"}
    looked_at = FrozenUp(module, dtype)
    with observed():
        assert looked_at(x).shape == up(x).shape
    assert not looked_at.layer.forms.made
    large = image(1, 256, 12, 12, dtype=dtype)
    check(up(large), module, large)
    assert set(up.layer.forms.made) == {"windows", 2}


@pytest.mark.parametrize(
    ("kind", "channels", "out_channels", "n", "h", "w"),
    [
        ("same", 144, 112, 1, 22, 21),  # 36 tiles of 4 x 4, half a panel, half a step
        ("same", 96, 200, 2, 9, 31),
        ("up", 104, 72, 1, 13, 11),
        ("down", 120, 136, 1, 21, 50),
    ],
)
def test_points_by_a_matrix_unit(
    kind: str, channels: int, out_channels: int, n: int, h: int, w: int
) -> None:
    """So many numbers that it multiplies float32 there, in parts."""
    x = image(n, channels, h, w)
    if kind == "up":
        module = layer(nn.ConvTranspose2d, channels, out_channels, 4, 2, 1)
        conv: FrozenConv | FrozenUp = FrozenUp(module, torch.float32)
    else:
        module = layer(nn.Conv2d, channels, out_channels, 3, 1 if kind == "same" else 2, 1)
        conv = FrozenConv(module, torch.float32)
    got, threads = conv(x), torch.get_num_threads()
    check(got, module, x)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(conv(x), got)
    finally:
        torch.set_num_threads(threads)
    x[0, 1, h // 2, w // 2] = torch.nan
    broken = conv(x).isnan()
    # A tile's pixels break together, no others.
    assert broken.any()
    assert broken.sum() <= out_channels * 12**2


@needs_matrix_unit
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("kind", "channels", "out_channels", "n", "h", "w"),
    [
        (Kind.DOWN, 16, 24, 2, 33, 47),
        (Kind.DOWN, 48, 80, 1, 64, 160),  # strips, and a step of 16 channels beside one of 32
        (Kind.DOWN, 32, 5, 1, 90, 46),
        (Kind.DOWN, 112, 16, 1, 3, 2),  # a sum of two pieces
        (Kind.UP, 80, 40, 1, 16, 70),
        (Kind.UP, 16, 8, 3, 17, 16),
        (Kind.UP, 256, 16, 1, 5, 9),
        (Kind.SAME, 96, 33, 1, 20, 65),
        (Kind.SAME, 16, 16, 2, 1, 130),
    ],
)
def test_direct(
    kind: Kind, channels: int, out_channels: int, n: int, h: int, w: int, bias: bool
) -> None:
    if kind == Kind.UP:
        module = layer(nn.ConvTranspose2d, channels, out_channels, 4, 2, 1, bias=bias)
    else:
        stride = 2 if kind == Kind.DOWN else 1
        module = layer(nn.Conv2d, channels, out_channels, 3, stride, 1, bias=bias)
    form, x = Direct(module.weight, module.bias, kind), image(n, channels, h, w)
    got, before = form(x), torch.get_num_threads()
    check(got, module, x)
    sums = [torch.rand_like(got) for _ in range(2)]
    expected = module(x).relu() + sums[0] + sums[1]
    assert largest_error(form(x, *sums, relu=True), expected) < 1e-4
    assert largest_error(form(x, *sums, relu=True, out=sums[1]), expected) < 1e-4
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(form(x), got)
    finally:
        torch.set_num_threads(before)
    x[-1, -1, h // 2, w // 2] = torch.nan
    assert torch.equal(form(x).isnan(), module(x).isnan())


@needs_matrix_unit
def test_direct_with_the_largest_weights_and_refusals() -> None:
    module = layer(nn.Conv2d, 16, 8, 3, 2, 1)
    module.weight[:, 0] = 3.4e38
    x = torch.zeros(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    x[0, 0, 4, 4] = 0.5
    got = Direct(module.weight, None, Kind.DOWN)(x)
    torch.testing.assert_close(got, F.conv2d(x, module.weight, None, 2, 1))
    with pytest.raises(ValueError, match="multiple of 16"):
        Direct(module.weight[:, :8], None, Kind.DOWN)(x[:, :8].contiguous())
    assert not Direct.suits(Kind.DOWN, torch.zeros(1, 0, 64, 64), torch.float32)


@needs_matrix_unit
def test_direct_takes_what_it_is_faster_for() -> None:
    for module, x in (
        (layer(nn.ConvTranspose2d, 32, 16, 4, 2, 1), image(1, 32, 16, 16)),
        (layer(nn.Conv2d, 64, 80, 3, 2, 1), image(1, 64, 32, 32)),
    ):
        up = isinstance(module, nn.ConvTranspose2d)
        conv = FrozenUp(module, torch.float32) if up else FrozenConv(module, torch.float32)
        check(conv(x), module, x)
        smaller = x[:, :, 1:].contiguous(memory_format=torch.channels_last)
        check(conv(smaller), module, smaller)
        # An image of 31 rows halves to 16.
        assert set(conv.layer.forms.made) == ({"direct", 2} if up else {"direct"})
        with observed():
            assert conv(x).shape == module(x).shape
    wide = layer(nn.Conv2d, 80, 80, 3, 2, 1), image(1, 80, 32, 32)
    conv = FrozenConv(wide[0], torch.float32)
    conv(wide[1])
    assert set(conv.layer.forms.made) == {2}


def test_direct_needs_a_matrix_unit() -> None:
    if matrix_unit():
        pytest.skip("there is one")
    weight = torch.zeros(16, 16, 3, 3)
    with pytest.raises(RuntimeError, match="matrix unit"):
        Direct(weight, None, Kind.SAME)(image(1, 16, 8, 8))


@needs_bfloat16
def test_many_tiles_in_bfloat16() -> None:
    """A matrix unit does without Winograd's algorithm there."""
    module, x = layer(nn.Conv2d, 32, 32, 3, 1, 1), image(1, 32, 32, 40, dtype=BFLOAT16)
    conv = FrozenConv(module, BFLOAT16)
    check(conv(x), module, x)
    assert set(conv.layer.forms.made) == {"oneDNN" if matrix_unit() else 2}


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(BFLOAT16, marks=needs_bfloat16)])
def test_bits_are_those_of_one_thread(dtype: torch.dtype) -> None:
    conv, threads = FrozenConv(layer(nn.Conv2d, 32, 16, 3, 1, 1), dtype), torch.get_num_threads()
    images = [image(1, 32, rows, columns, dtype=dtype) for rows, columns in ((12, 20), (120, 50))]
    try:
        torch.set_num_threads(1)
        expected = [conv(x) for x in images]
        torch.set_num_threads(2)
        assert all(torch.equal(conv(x), y) for x, y in zip(images, expected, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("kind", "channels", "threads", "h", "w"),
    [
        (Kind.SAME, 1024, 3, 24, 30),
        (Kind.SAME, 512, 5, 32, 34),
        (Kind.SAME, 320, 12, 48, 60),
        (Kind.UP, 700, 4, 20, 30),
        (Kind.DOWN, 512, 6, 64, 76),
    ],
)
def test_many_threads_share_a_block(
    kind: Kind, channels: int, threads: int, h: int, w: int
) -> None:
    """Of so many tiles that a matrix unit takes them apart in pieces."""
    torch.manual_seed(0)
    shape = (channels, 32, 4, 4) if kind == Kind.UP else (64, channels, 3, 3)
    form, x = Winograd(torch.randn(shape), None, kind, 2), image(1, channels, h, w)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        expected = form(x)
        torch.set_num_threads(threads)
        assert torch.equal(form(x), expected)
    finally:
        torch.set_num_threads(before)


def test_a_form_made_in_a_call_serves_later_ones() -> None:
    x, module = image(1, 16, 9, 9), layer(nn.Conv2d, 16, 16, 3, 1, 1)
    conv = FrozenConv(module, torch.float32)
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        got = conv(x)
    assert torch.equal(conv(x), got)
    assert largest_error(got, F.conv2d(x, module.weight, module.bias, 1, 1)) < 1e-5


IN_A_CHILD = """
import test_frozen_convolutions as tests
tests.test_strided_winograd(17, 33, 1, 5, 6, True)
tests.test_transposed_winograd(33, 20, 1, 4, 4, True)
tests.test_residuals_by_winograd(20, 1, 5, 7, 2)
tests.test_residuals_by_winograd(33, 1, 64, 61, 4)
if tests._frozen._why_not(tests.BFLOAT16) is None:
    tests._native.pairs_pay = lambda: True
    tests.test_bfloat16_by_winograd(66, 2)
import test_frozen
test_frozen.test_what_breaks_the_tail_breaks_no_more_than_it_must(tests.BFLOAT16, False)
import test_frozen_linear
test_frozen_linear.test_own_product((1, 13, 1300), 80, True)
test_frozen_linear.test_own_product_of_pairs((1, 13, 1300), 80, True)
tests.test_direct_needs_a_matrix_unit()
"""


@pytest.mark.parametrize("isa", _native.CPU_ISAS[:-1])
def test_other_instruction_sets(isa: str) -> None:
    if _native.CPU_ISAS[_native.core().cpu_isa] == isa:
        pytest.skip("it is what all other tests run on")
    if why_not_isa(isa):
        pytest.skip(str(why_not_isa(isa)))
    done = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD],
        env=environment(CLIPWEATHER_CPU_ISA=isa),
        cwd=Path(__file__).parent,  # from there it imports
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
