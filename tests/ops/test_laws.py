"""Laws the operators obey whatever the numbers, tried on many shapes by hypothesis.

Both sides of a law round differently, so they are compared in float64, where every backend that has
it must agree to twelve digits; the battery judges the other dtypes.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clipweather_fast import ops
from operands import mixed_kernels, normal, predictor

pytestmark = pytest.mark.full
BACKENDS = ("cpu", "reference")
GATES = st.sampled_from(["softmax", "sigmoid", "none"])
KERNEL_SIZES = st.sampled_from([3, 3, 3, 5, 7])
COUNTS = st.integers(1, 8)

images = st.tuples(
    st.integers(1, 2),
    st.sampled_from([1, 2, 3, 8, 15, 16, 17, 33]),
    st.integers(1, 7),
    st.integers(1, 9),
)
tokens = st.tuples(
    st.integers(1, 2),
    st.integers(1, 40),
    st.integers(1, 70),
    st.integers(1, 3),
    st.sampled_from([1, 3, 16, 64, 80]),
)


@pytest.fixture(params=BACKENDS, scope="module")
def backend(request: pytest.FixtureRequest) -> str:
    answer = ops.explain(ops.depthwise_conv2d, normal(1, 1, 1, 1), normal(1, 1, 3, 3))
    if not answer[request.param].startswith("yes"):
        pytest.skip(f"{request.param}: {answer[request.param]}")
    return request.param


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def operands(shape: tuple[int, ...], kernels: int, k: int) -> tuple[Tensor, Tensor, Any]:
    """x, logits, and the kernels by name."""
    n, c, h, w = shape
    torch.manual_seed(0)  # hypothesis repeats an example: then with the same numbers
    return (
        normal(*shape),
        normal(n, kernels, h, w),
        mixed_kernels(c, kernels, k, bias=True, static=True),
    )


@given(shape=images, k=KERNEL_SIZES)
def test_one_softmax_kernel_is_a_depthwise_convolution(backend: str, shape: Any, k: int) -> None:
    x, logits, kernels = operands(shape, 1, k)
    y = ops.sar_conv2d(x, logits, kernels["weight"], kernels["bias"], backend=backend)
    weight, bias = kernels["weight"].transpose(0, 1), kernels["bias"][0]
    close(y, ops.depthwise_conv2d(x, weight, bias, backend=backend))


@given(shape=images, k=KERNEL_SIZES, count=COUNTS)
def test_equal_kernels_make_the_maps_irrelevant(
    backend: str, shape: Any, k: int, count: int
) -> None:
    x, logits, kernels = operands(shape, count, k)
    weight = kernels["weight"][:1].expand_as(kernels["weight"])
    bias = kernels["bias"][:1].expand_as(kernels["bias"])
    y = ops.sar_conv2d(x, logits, weight, bias, backend=backend)
    close(y, ops.sar_conv2d(x, logits * 3 + 1, weight, bias, backend=backend))
    close(y, ops.depthwise_conv2d(x, weight[0].unsqueeze(1), bias[0], backend=backend))


@given(shape=images, k=KERNEL_SIZES, count=COUNTS, activation=st.sampled_from(["none", "gelu"]))
def test_zero_maps_leave_the_static_kernel(
    backend: str, shape: Any, k: int, count: int, activation: str
) -> None:
    x, logits, kernels = operands(shape, count, k)
    options = {"gate": "none", "activation": activation, "return_residual": True}
    y, residual = ops.sar_conv2d(x, logits * 0, **kernels, **options, backend=backend)
    static = (kernels["static_weight"], kernels["static_bias"])
    close(y, ops.depthwise_conv2d(x, *static, activation=activation, backend=backend))
    close(residual, torch.zeros_like(x))


@given(shape=images, count=COUNTS, constant=st.floats(-50, 50))
def test_a_constant_in_the_logits_changes_nothing(
    backend: str, shape: Any, count: int, constant: float
) -> None:
    x, logits, kernels = operands(shape, count, 3)
    y = ops.sar_conv2d(x, logits, **kernels, backend=backend)
    close(y, ops.sar_conv2d(x, logits + constant, **kernels, backend=backend))


@given(shape=images, count=COUNTS, gate=GATES, data=st.data())
def test_order_of_the_kernels_is_free(
    backend: str, shape: Any, count: int, gate: str, data: Any
) -> None:
    x, logits, kernels = operands(shape, count, 3)
    order = data.draw(st.permutations(range(count)))
    moved = {**kernels, "weight": kernels["weight"][order], "bias": kernels["bias"][order]}
    y = ops.sar_conv2d(x, logits, **kernels, gate=gate, backend=backend)
    close(y, ops.sar_conv2d(x, logits[:, order], **moved, gate=gate, backend=backend))


@given(shape=images, k=KERNEL_SIZES, count=COUNTS, gate=GATES, factor=st.floats(-3, 3))
def test_linear_in_the_image(
    backend: str, shape: Any, k: int, count: int, gate: str, factor: float
) -> None:
    x, logits, kernels = operands(shape, count, k)
    other = normal(*shape)
    weights = {name: kernels[name] for name in ("weight", "static_weight")}

    def filtered(image: Tensor) -> Tensor:
        return ops.sar_conv2d(image, logits, **weights, gate=gate, backend=backend)

    close(filtered(x + factor * other), filtered(x) + factor * filtered(other))


@given(shape=images, count=COUNTS, gate=GATES)
def test_images_and_channels_do_not_see_each_other(
    backend: str, shape: Any, count: int, gate: str
) -> None:
    x, logits, kernels = operands(shape, count, 3)
    y = ops.sar_conv2d(x, logits, **kernels, gate=gate, activation="gelu", backend=backend)
    last = {
        name: t[:, -1:] if name in ("weight", "bias") else t[-1:] for name, t in kernels.items()
    }
    alone = ops.sar_conv2d(
        x[-1:, -1:], logits[-1:], **last, gate=gate, activation="gelu", backend=backend
    )
    close(y[-1:, -1:], alone)


@given(shape=images, k=KERNEL_SIZES)
def test_a_flipped_image_under_flipped_kernels_is_flipped(backend: str, shape: Any, k: int) -> None:
    x, logits, kernels = operands(shape, 3, k)
    flipped = {**kernels}
    for name in ("weight", "static_weight"):
        flipped[name] = kernels[name].flip(-1)
    y = ops.sar_conv2d(x, logits, **kernels, backend=backend)
    close(y.flip(-1), ops.sar_conv2d(x.flip(-1), logits.flip(-1), **flipped, backend=backend))


@given(shape=images, count=COUNTS)
def test_a_tile_with_its_border_equals_the_whole(backend: str, shape: Any, count: int) -> None:
    """Cropping one pixel less than the kernels reach changes nothing further in."""
    x, logits, kernels = operands((shape[0], shape[1], shape[2] + 3, shape[3]), count, 3)
    whole = ops.sar_conv2d(x, logits, **kernels, backend=backend)
    part = ops.sar_conv2d(x[:, :, 1:], logits[:, :, 1:], **kernels, backend=backend)
    close(part[:, :, 1:], whole[:, :, 2:])


@given(shape=images, count=COUNTS)
def test_logits_of_a_zero_projection_are_the_bias(backend: str, shape: Any, count: int) -> None:
    parameters = predictor(shape[1], count)
    parameters["pointwise_weight"] = parameters["pointwise_weight"] * 0
    logits = ops.sar_logits(normal(*shape), **parameters, backend=backend)
    close(logits, parameters["pointwise_bias"].view(1, -1, 1, 1).expand_as(logits))


@given(shape=images, count=COUNTS, gate=GATES)
def test_mixer_is_its_composition(backend: str, shape: Any, count: int, gate: str) -> None:
    z, _, kernels = operands(shape, count, 3)
    parameters = predictor(shape[1], count)
    logits = ops.sar_logits(z, **parameters, backend=backend)
    composed = ops.sar_conv2d(
        z, logits, **kernels, gate=gate, activation="gelu", return_residual=True, backend=backend
    )
    fused = ops.sar_mixer(
        z, **parameters, **kernels, gate=gate, return_residual=True, backend=backend
    )
    for found, expected in zip(fused, composed, strict=True):
        close(found, expected)


def queries(sizes: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    n, queries, keys, heads, d = sizes
    torch.manual_seed(0)
    return normal(n, queries, heads, d), normal(n, keys, heads, d), normal(n, keys, heads, d)


@given(sizes=tokens)
def test_attention_to_a_constant_returns_it(backend: str, sizes: Any) -> None:
    q, k, v = queries(sizes)
    constant = v[:, :1].expand_as(v)
    out = ops.reduced_kv_attention(q, k, constant, backend=backend)
    close(out, v[:, :1].expand_as(q))


@given(sizes=tokens)
def test_attention_to_one_key_returns_its_value(backend: str, sizes: Any) -> None:
    q, k, v = queries(sizes)
    out = ops.reduced_kv_attention(q, k[:, :1], v[:, :1], backend=backend)
    close(out, v[:, :1].expand_as(q))


@given(sizes=tokens, data=st.data())
def test_order_of_the_keys_is_free(backend: str, sizes: Any, data: Any) -> None:
    q, k, v = queries(sizes)
    order = data.draw(st.permutations(range(k.shape[1])))
    out = ops.reduced_kv_attention(q, k, v, backend=backend)
    close(out, ops.reduced_kv_attention(q, k[:, order], v[:, order], backend=backend))


@given(sizes=tokens, scale=st.floats(-2, 2))
def test_scale_multiplies_the_queries(backend: str, sizes: Any, scale: float) -> None:
    q, k, v = queries(sizes)
    out = ops.reduced_kv_attention(q, k, v, scale=scale, backend=backend)
    close(out, ops.reduced_kv_attention(q * scale, k, v, scale=1.0, backend=backend))
    close(
        ops.reduced_kv_attention(q, k, v, scale=q.shape[-1] ** -0.5, backend=backend),
        ops.reduced_kv_attention(q, k, v, backend=backend),
    )


@given(sizes=tokens)
def test_a_common_shift_of_the_keys_changes_nothing(backend: str, sizes: Any) -> None:
    q, k, v = queries(sizes)
    out = ops.reduced_kv_attention(q, k, v, backend=backend)
    close(out, ops.reduced_kv_attention(q, k + k[:, :1], v, backend=backend))


@given(sizes=tokens)
def test_a_weight_far_below_counts_for_nothing(backend: str, sizes: Any) -> None:
    """Scores of hundreds do not overflow: the largest one takes everything."""
    q, k, v = queries(sizes)
    k = torch.zeros_like(k)
    k[:, 0] = 1e3
    q = q.abs() + 1
    out = ops.reduced_kv_attention(q, k, v, backend=backend)
    close(out, v[:, :1].expand_as(q))
