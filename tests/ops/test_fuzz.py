"""Whatever is thrown at an operator: a result of the right shape, or one of the documented errors.

The arguments start right, with random sizes, and a few of them are then replaced by something wrong
or merely odd: another rank, size, dtype, device, stride, word or type.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from clipweather_fast import ops
from operands import mixed_kernels, normal, predictor

pytestmark = pytest.mark.full
DOCUMENTED = (ValueError, TypeError, ops.BackendUnavailable)

sizes = st.integers(0, 5)
odd_sizes = st.integers(0, 9)
dtypes = st.sampled_from(
    [
        torch.float32,
        torch.bfloat16,
        torch.float16,
        torch.float64,
        torch.int64,
        torch.bool,
        torch.complex64,
        torch.float8_e4m3fn,
    ]
)
floats = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64])
words = st.sampled_from(["none", "softmax", "sigmoid", "gelu", "relu", "", None, 3, "NONE"])
gates = st.sampled_from(["none", "softmax", "sigmoid"])
activations = st.sampled_from(["none", "gelu"])
right_backends = st.sampled_from(["auto", "reference", "cpu", None])
backends = st.sampled_from(["auto", "reference", "cpu", "triton", "cuda", None, "gpu", 1])
not_tensors = st.sampled_from([None, 1, 2.5, "x", [1.0], (), {}, object])


def images(draw: Any) -> dict[str, Any]:
    """Sizes every image operator shares."""
    return {
        "shape": tuple(draw(sizes) for _ in range(4)),
        "kernels": draw(st.integers(1, 8)),
        "k": draw(st.sampled_from([3, 3, 5, 7])),
    }


def sar_conv2d(draw: Any) -> dict[str, Any]:
    how = images(draw)
    (n, c, h, w), kernels = how["shape"], how["kernels"]
    return {
        "x": normal(n, c, h, w),
        "logits": normal(n, kernels, h, w),
        **mixed_kernels(c, kernels, how["k"], draw(st.booleans()), draw(st.booleans())),
        "gate": draw(gates),
        "activation": draw(activations),
        "return_residual": draw(st.booleans()),
    }


def depthwise_conv2d(draw: Any) -> dict[str, Any]:
    how = images(draw)
    c, k = how["shape"][1], how["k"]
    return {
        "x": normal(*how["shape"]),
        "weight": normal(c, 1, k, k),
        "bias": normal(c),
        "activation": draw(activations),
    }


def sar_logits(draw: Any) -> dict[str, Any]:
    how = images(draw)
    return {"x": normal(*how["shape"]), **predictor(how["shape"][1], how["kernels"])}


def sar_mixer(draw: Any) -> dict[str, Any]:
    how = images(draw)
    c, kernels = how["shape"][1], how["kernels"]
    return {
        "z": normal(*how["shape"]),
        **predictor(c, kernels),
        **mixed_kernels(c, kernels, how["k"], draw(st.booleans()), draw(st.booleans())),
        "gate": draw(gates),
        "return_residual": draw(st.booleans()),
    }


def reduced_kv_attention(draw: Any) -> dict[str, Any]:
    n, queries, keys, heads = (draw(sizes) for _ in range(4))
    d = draw(st.sampled_from([1, 3, 16, 64, 256]))
    return {
        "q": normal(n, queries, heads, d),
        "k": normal(n, keys, heads, d),
        "v": normal(n, keys, heads, d),
        "scale": draw(st.sampled_from([None, 0, 1.5, -1])),
    }


MAKERS = (sar_conv2d, depthwise_conv2d, sar_logits, sar_mixer, reduced_kv_attention)


def spoilt(draw: Any, value: Any) -> Any:
    """Something else in the place of an argument: often a tensor nearly like it."""
    if not isinstance(value, Tensor):
        return draw(words)
    kind = draw(st.sampled_from(["value", "dtype", "rank", "size", "device", "sparse", "stride"]))
    if kind == "value":
        return draw(not_tensors)
    if kind == "dtype":
        return value.to(draw(dtypes))
    if kind == "rank":
        return draw(st.sampled_from([value.unsqueeze(0), value.flatten(), value.sum()]))
    if kind == "size":
        axis = draw(st.integers(0, value.dim() - 1)) if value.dim() else 0
        shape = list(value.shape) or [1]
        shape[axis] = draw(odd_sizes)
        return torch.zeros(shape, dtype=value.dtype)
    if kind == "device":
        return value.to("meta")
    if kind == "sparse":
        return torch.zeros(value.shape).to_sparse()
    return value.transpose(0, -1) if value.dim() else value.expand(2)


def restrided(draw: Any, value: Any) -> Any:
    """The same values in another memory layout."""
    if not isinstance(value, Tensor) or value.dim() < 2 or not draw(st.booleans()):
        return value
    first, second = draw(st.permutations(range(value.dim())))[:2]
    return value.transpose(first, second).contiguous().transpose(first, second)


@st.composite
def calls(draw: Any, maker: Any, most_spoilt: int) -> dict[str, Any]:
    torch.manual_seed(draw(st.integers(0, 3)))
    arguments = maker(draw)
    dtype, device = draw(floats), draw(st.sampled_from(["cpu", "cpu", "cpu", "meta"]))
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            arguments[name] = restrided(draw, value.to(dtype).to(device))
    names = draw(st.lists(st.sampled_from(sorted(arguments)), max_size=most_spoilt, unique=True))
    for name in names:
        arguments[name] = spoilt(draw, arguments[name])
    return {**arguments, "backend": draw(backends if most_spoilt else right_backends)}


def check(op: Any, arguments: dict[str, Any]) -> None:
    """Runs the call, and its backward pass where there is a result."""
    leaves = {
        name: value.detach().requires_grad_()
        if isinstance(value, Tensor) and value.is_floating_point() and not value.is_sparse
        else value
        for name, value in arguments.items()
    }
    try:
        result = op(**leaves)
    except DOCUMENTED as error:
        text = str(error)
        assert text.startswith((f"{op.__name__}: ", "use_backend: ")), text
        return
    first = next(iter(arguments.values()))
    outputs = result if isinstance(result, tuple) else (result,)
    for y in outputs:
        assert y.dtype == first.dtype
        assert y.device == first.device
        expected = list(first.shape)
        if op is ops.sar_logits:
            expected[1] = arguments["pointwise_weight"].shape[0]
        assert list(y.shape) == expected
    sum(y.sum() for y in outputs).backward()
    for name, value in leaves.items():
        if isinstance(value, Tensor) and value.grad is not None:
            assert value.grad.shape == value.shape, name
            assert value.grad.dtype == value.dtype, name


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_right_calls(maker: Any, data: Any) -> None:
    """Nothing spoilt: any size from nothing on, any dtype and layout."""
    check(getattr(ops, maker.__name__), data.draw(calls(maker, 0)))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@settings(max_examples=100, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_spoilt_calls(maker: Any, data: Any) -> None:
    check(getattr(ops, maker.__name__), data.draw(calls(maker, 3)))


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
@settings(max_examples=30)
@given(data=st.data())
def test_explain_answers_or_raises_alike(maker: Any, data: Any) -> None:
    """explain raises what the call would raise, and else has a sentence for every backend."""
    op = getattr(ops, maker.__name__)
    arguments = data.draw(calls(maker, 2))
    arguments.pop("backend")
    try:
        answers = ops.explain(op, **arguments)
    except DOCUMENTED as error:
        with pytest.raises(type(error), match=f"^{re.escape(str(error))}$"):
            op(**arguments)
        return
    assert set(answers) == set(ops.BACKENDS)
    assert sum(answer.startswith("yes (chosen") for answer in answers.values()) == 1
    op(**arguments)
