"""EfficientAttention: equation, names, sizes that do not divide, words."""

from typing import Any

import pytest
import torch

from clipweather_fast.modules import EfficientAttention
from same_module import assert_same_function, randomised, tokens
from structured_networks import ReducedAttention

#: dim, heads, sr_ratio, height, width: the network's head widths, odd sizes, windows left over;
#: two keys at least, as one key's gradients are pure rounding.
CASES = [
    (64, 1, 4, 8, 12),
    (64, 1, 4, 9, 11),
    (128, 1, 4, 4, 9),
    (32, 2, 2, 5, 7),
    (80, 1, 2, 6, 5),
    (160, 2, 2, 4, 3),
    (256, 1, 1, 7, 9),
    (16, 4, 1, 1, 12),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_computes_its_equation(case: tuple[int, ...]) -> None:
    dim, heads, sr, height, width = case
    module = randomised(EfficientAttention(dim, heads, sr))
    plain = ReducedAttention(dim, heads, sr)
    assert_same_function(module, plain, tokens(2, height, width, dim), height, width)


def test_state_dict_is_the_one_of_transweather() -> None:
    theirs, ours = ReducedAttention(32, 2, 2), EfficientAttention(32, 2, 2)
    assert set(ours.state_dict()) == set(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    x = tokens(1, 6, 4, 32)
    torch.testing.assert_close(ours(x, 6, 4), theirs(x, 6, 4))
    assert EfficientAttention(32, 2, qkv_bias=False).q.bias is None


def test_dropout_of_the_attention_weights() -> None:
    module = randomised(EfficientAttention(16, 2, 2, attn_drop=0.5))
    x = tokens(2, 6, 4, 16)
    assert not torch.equal(module(x, 6, 4), module(x, 6, 4))
    module.eval()
    assert torch.equal(module(x, 6, 4), module(x, 6, 4))


def test_autocast_gives_its_dtype() -> None:
    module, x = randomised(EfficientAttention(16, 2, 2)), tokens(2, 6, 4, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = module(x, 6, 4)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), module(x, 6, 4), rtol=0.05, atol=0.1)


def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    module, x = randomised(EfficientAttention(16, 2, 2)), tokens(1, 4, 6, 16).requires_grad_()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    got, expected = compiled(x, 4, 6), module(x, 4, 6)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(
        torch.autograd.grad(got.sum(), x), torch.autograd.grad(expected.sum(), x)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"dim": 10, "num_heads": 4},
            "EfficientAttention: dim must be a multiple of num_heads = 4, got 10",
        ),
        (
            {"dim": 8, "num_heads": 0},
            "EfficientAttention: num_heads must be a positive integer, got 0",
        ),
        (
            {"dim": 8, "sr_ratio": 0},
            "EfficientAttention: sr_ratio must be a positive integer, got 0",
        ),
        (
            {"dim": 8, "proj_drop": -0.1},
            "EfficientAttention: proj_drop must be a probability in [0, 1), got -0.1",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole text is compared
        EfficientAttention(**arguments)
    assert str(caught.value) == words


def test_wrong_sizes_are_named() -> None:
    module = EfficientAttention(8, 2, 4)
    with pytest.raises(ValueError, match=r"H and W must be at least sr_ratio = 4, got 3 and 8"):
        module(tokens(1, 3, 8, 8), 3, 8)
    with pytest.raises(ValueError, match=r"L = H·W = 4·4, got \(1, 24, 8\)"):
        module(tokens(1, 3, 8, 8), 4, 4)
