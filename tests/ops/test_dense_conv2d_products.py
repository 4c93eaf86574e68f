"""The matrix products behind dense_conv2d, by themselves: what the ways through them have in common
is the result. Which way it is depends on the sizes, on how the operands are stored, and on AMX."""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from clipweather_fast.ops import _native

if _native.why_not_loaded():
    pytest.skip(_native.why_not_loaded() or "", allow_module_level=True)
multiply = importlib.import_module("clipweather_fast.ops.dense_conv2d.native_cpu")._multiply

PLAIN, LAYER, GRADIENT = (False, False), (False, True), (True, False)
#: How A and B are stored (transposed or not), and M, N, K.
PRODUCTS = {
    "a handful of rows": (PLAIN, 7, 320, 300),
    "few rows": (PLAIN, 16, 300, 70),
    "few rows of a layer": (LAYER, 17, 290, 600),
    "a layer that widens": (LAYER, 70, 530, 1030),
    "a layer that narrows": (LAYER, 530, 70, 33),
    "many panels": (PLAIN, 40, 1200, 300),
    "more steps than are packed at once": (LAYER, 64, 40, 3000),
    "more rows than are packed at once": (PLAIN, 900, 45, 530),
    "a weight's gradient": (GRADIENT, 70, 50, 600),
    "a large gradient": (GRADIENT, 400, 528, 16),
    "a large gradient of many steps": (GRADIENT, 300, 512, 1030),
    "a large gradient of uneven height": (GRADIENT, 407, 528, 300),
    "a large gradient of uneven sides": (GRADIENT, 431, 601, 64),
}


@pytest.mark.parametrize("count", [0, 2], ids=["one", "two at once"])
@pytest.mark.parametrize("first", [0, 1], ids=["aligned", "not aligned"])
@pytest.mark.parametrize("product", PRODUCTS)
def test_products_are_right_and_stay_in_their_place(product: str, first: int, count: int) -> None:
    torch.manual_seed(0)
    (a_transposed, b_transposed), m, n, k = PRODUCTS[product]
    stack = (count,) if count else ()
    a, b = torch.randn(*stack, m, k), torch.randn(*stack, k, n)
    bias = None if count or a_transposed else torch.randn(n)
    true, scale = a.double() @ b.double(), a.double().abs() @ b.double().abs()
    if bias is not None:
        true, scale = true + bias, scale + bias.abs()
    stored_a = a.mT.contiguous() if a_transposed else a
    stored_b = b.mT.contiguous() if b_transposed else b
    found = []
    threads = torch.get_num_threads()
    for number in (1, 2, 5):
        around = torch.full((first + true.numel() + 40,), torch.nan)
        c = around[first : first + true.numel()].view(true.shape)
        torch.set_num_threads(number)
        try:
            options = {"a_transposed": a_transposed, "b_transposed": b_transposed}
            multiply(stored_a, stored_b, c, bias, **options)
        finally:
            torch.set_num_threads(threads)
        assert bool(around[:first].isnan().all())
        assert bool(around[first + true.numel() :].isnan().all())
        found.append(c)
    assert float(((found[0] - true).abs() / scale).max()) < 1e-6
    same = all(torch.equal(c, found[0]) for c in found)
    assert same, "the number of threads changes the sums"


def test_sums_of_one_sign_are_not_biased() -> None:
    """What is lost of the small parts of large sums must not always be lost on the same side."""
    torch.manual_seed(0)
    a, b = torch.rand(64, 4096), torch.rand(4096, 64)
    c = torch.empty(64, 64)
    multiply(a, b, c)
    true = a.double() @ b.double()
    relative: Tensor = (c - true) / true
    assert abs(float(relative.mean())) < 3e-8
    assert float(relative.abs().max()) < 3e-6
