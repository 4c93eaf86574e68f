"""The products of dense_conv2d: as exact as PyTorch's, however their operands lie."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipweather_fast.ops import _native
from clipweather_fast.ops.dense_conv2d.native_cpu import _multiply

pytestmark = pytest.mark.skipif(
    _native.why_not_loaded() is not None, reason="the native core is not there"
)

#: M, N, K: whole squares, edges, one register, few rows, more depth than is summed at once.
SIZES = [(64, 64, 64), (100, 77, 45), (33, 49, 97), (16, 48, 1100), (48, 16, 64), (416, 40, 1030), (3, 5, 7)]  # fmt: skip  # noqa: E501
LAYOUTS = [(False, False), (False, True), (True, False)]


def product(a: Tensor, b: Tensor, layout: tuple[bool, bool], bias: Tensor | None = None) -> Tensor:
    """a b + bias, of operands stored as ``layout`` says."""
    stored = [x.t().contiguous() if flip else x for x, flip in zip((a, b), layout, strict=True)]
    c = torch.full((a.shape[0], b.shape[1]), torch.nan, dtype=a.dtype)
    _multiply(*stored, c, bias, a_transposed=layout[0], b_transposed=layout[1])
    return c


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("magnitude", [1e-15, 1.0, 1e15])
def test_products_are_as_exact_as_float32_sums(
    size: tuple[int, int, int], layout: tuple[bool, bool], magnitude: float
) -> None:
    m, n, k = size
    torch.manual_seed(0)
    # Of all signs and some sizes, so that what is left out of a product would show.
    a = torch.randn(m, k) * magnitude * 2.0 ** torch.randint(-6, 6, (m, k))
    b = torch.randn(k, n) * 2.0 ** torch.randint(-6, 6, (k, n))
    bias = torch.randn(n) * magnitude
    exact = a.double() @ b.double() + bias
    possible = a.double().abs() @ b.double().abs() + bias.abs()
    error = ((product(a, b, layout, bias) - exact).abs() / possible).max()
    usual = ((a @ b + bias - exact).abs() / possible).max()
    assert error <= max(2 * usual, 2.0**-22)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_numbers_of_few_bits_are_multiplied_exactly(layout: tuple[bool, bool]) -> None:
    """Sums of integers below 2^24 have no error: not one of the parts may be lost."""
    torch.manual_seed(0)
    a = torch.randint(-4095, 4096, (64, 2)).float()
    b = torch.randint(-2047, 2048, (2, 64)).float()
    a, b = (torch.cat([x, torch.zeros(shape)], dim) for x, shape, dim in ((a, (64, 62), 1), (b, (62, 64), 0)))  # fmt: skip  # noqa: E501
    assert torch.equal(product(a, b, layout), a @ b)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_products_do_not_depend_on_threads(
    layout: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(300, 700), torch.randn(700, 130)
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(product(a, b, layout))
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_not_finite_stays_so_where_it_counts(
    value: float, layout: tuple[bool, bool]
) -> None:
    torch.manual_seed(0)
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    clean = product(a, b, layout)
    a[5, 7] = value
    c = product(a, b, layout)
    assert not c[5].isfinite().any()
    others = torch.arange(64) != 5
    assert torch.equal(c[others], clean[others])


def test_the_largest_and_smallest_numbers_are_kept() -> None:
    largest = torch.finfo(torch.float32).max
    a = torch.eye(64) * largest
    assert torch.equal(product(a, torch.eye(64), (False, False)), a)
    a = torch.eye(64) * 2.0**-100
    assert torch.equal(product(a, torch.eye(64), (False, True)), a)
