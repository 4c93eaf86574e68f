"""Linear layers by whichever product is faster: the same values, gradients and hooks."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from clipweather_fast.modules import _linear
from clipweather_fast.modules._linear import linear
from clipweather_fast.modules._reduction import reduced
from clipweather_fast.ops import _native, use_backend


@pytest.fixture(params=["as it is", "wide vectors", "matrix unit"])
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operator's calls; the choice is made as on this processor, with AVX-512, or with AMX."""
    if _native.why_not_loaded():
        pytest.skip("the native core is not there")
    if request.param != "as it is":
        monkeypatch.setattr(_native, "matrix_unit", lambda: request.param == "matrix unit")
        monkeypatch.setattr(_native, "wide_vectors", lambda: True)
    monkeypatch.setitem(_linear.product_pays.__globals__, "FEW_ROWS", 768)  # of these tests
    found: list[str] = []
    product = _linear.linear_product

    def counted(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        found.append("linear_product")
        return product(x, weight, bias)

    monkeypatch.setattr(_linear, "linear_product", counted)
    return found


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, nn.Linear]:
    torch.manual_seed(0)
    layer = nn.Linear(96, 160).to(dtype)
    return torch.randn(2, 300, 96, dtype=dtype, requires_grad=True), layer


def test_values_and_gradients(calls: list[str]) -> None:
    x, layer = inputs()
    weights = torch.randn(2, 300, 160)
    results = []
    for call in (layer, lambda x: linear(x, layer)):
        y = call(x)
        grads = torch.autograd.grad((y * weights).sum(), (x, layer.weight, layer.bias))
        results.append((y.detach(), *grads))
    for one, other in zip(*results, strict=True):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
    assert results[1][0].is_contiguous()
    assert bool(calls) == (_native.matrix_unit() or _native.wide_vectors())


def test_without_bias_and_with_few_tokens(calls: list[str]) -> None:
    x, _ = inputs()
    layer = nn.Linear(96, 160, bias=False)
    torch.testing.assert_close(linear(x, layer), layer(x), rtol=1e-5, atol=1e-5)
    called = len(calls)
    torch.testing.assert_close(linear(x[:1, :5], layer), layer(x[:1, :5]))
    assert len(calls) == called


@pytest.mark.parametrize(("inputs", "outputs"), [(0, 8), (8, 0)])
def test_layers_without_inputs_or_outputs(calls: list[str], inputs: int, outputs: int) -> None:
    x, layer = torch.randn(1, 64, inputs, requires_grad=True), nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(torch.randn(outputs, inputs))
    y = linear(x, layer)
    assert y.shape == (1, 64, outputs)
    y.sum().backward()
    assert not calls


@pytest.mark.parametrize("frozen", ["x", "weight", "bias"])
def test_gradients_that_nobody_wants_are_not_computed(calls: list[str], frozen: str) -> None:
    x, layer = inputs()
    tensors = {"x": x, "weight": layer.weight, "bias": layer.bias}
    tensors[frozen].requires_grad_(False)
    wanted = [tensor for tensor in tensors.values() if tensor.requires_grad]
    ours, theirs = (
        torch.autograd.grad(y.square().sum(), wanted) for y in (linear(x, layer), layer(x))
    )
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5 * float(other.abs().max()))


def test_second_derivatives_and_batches_of_gradients(calls: list[str]) -> None:
    """A penalty on gradients, and a Jacobian by vmap: both are PyTorch's."""
    x, layer = inputs()
    found = []
    for call in (layer, lambda x: linear(x, layer)):
        (gradient,) = torch.autograd.grad(call(x).square().sum(), x, create_graph=True)
        second = torch.autograd.grad(gradient.square().sum(), layer.weight)[0]
        rows = torch.eye(160)[:3].view(3, 1, 1, 160).expand(3, *x.shape[:2], 160)
        batch = torch.autograd.grad(call(x), layer.weight, rows, is_grads_batched=True)[0]
        found.append((second, batch))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5 * float(one.abs().max()))


def test_windows_that_are_reduced_go_the_same_way(calls: list[str]) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 16 * 24, 64, requires_grad=True)
    convolution = nn.Conv2d(64, 128, 4, stride=4).to(memory_format=torch.channels_last)
    weights = torch.randn(2, 24, 128)
    results = []
    for call in (
        lambda: convolution(x.transpose(1, 2).view(2, 64, 16, 24)).flatten(2).transpose(1, 2),
        lambda: reduced(x, 16, 24, convolution),
    ):
        y = call()
        grads = torch.autograd.grad((y * weights).sum(), (x, *convolution.parameters()))
        results.append((y.detach(), *grads))
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5 * float(one.abs().max()))
    assert bool(calls) == (_native.matrix_unit() or _native.wide_vectors())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_pytorchs(calls: list[str], dtype: torch.dtype) -> None:
    x, layer = inputs(dtype)
    assert torch.equal(linear(x, layer), layer(x))
    assert not calls


def test_autocast_a_named_backend_and_hooks_are_pytorchs(calls: list[str]) -> None:
    x, layer = inputs()
    with torch.autocast("cpu", torch.bfloat16):
        assert linear(x, layer).dtype == torch.bfloat16
    with use_backend("reference"):
        assert torch.equal(linear(x, layer), layer(x))
    seen: list[int] = []
    layer.register_forward_hook(lambda *_: seen.append(1))
    linear(x, layer)
    assert seen
    assert not calls


def test_tokens_that_are_not_dense_give_dense_ones(calls: list[str]) -> None:
    _, layer = inputs()
    for x in (torch.randn(2, 96, 300).transpose(1, 2), torch.randn(2, 600, 100)[:, ::2, 3:99]):
        found = linear(x, layer)
        assert found.is_contiguous()
        torch.testing.assert_close(found, layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_transforms_exports_and_patched_layers_meet_pytorchs(calls: list[str]) -> None:
    x, layer = inputs()
    x = x.detach()
    tangent = torch.func.jvp(lambda x: linear(x, layer), (x,), (x,))[1]
    assert torch.equal(tangent, torch.nn.functional.linear(x, layer.weight))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            return linear(x, self.layer)

    length = torch.export.Dim("length", min=2, max=5000)
    program = torch.export.export(Own(), (x,), dynamic_shapes=({1: length},))
    torch.testing.assert_close(program.module()(x[:, :7]), layer(x[:, :7]))
    layer.forward = lambda x: x  # type: ignore[method-assign]
    assert linear(x, layer) is x
    assert not calls


def test_biases_that_are_not_dense(calls: list[str]) -> None:
    """A kernel would read what lies between, or beyond."""
    x, layer = inputs()
    for bias in (torch.randn(160, 2)[:, 0], torch.randn(1).expand(160)):
        layer.bias = nn.Parameter(bias)
        torch.testing.assert_close(linear(x, layer), layer(x), rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            torch.testing.assert_close(linear(x, layer), layer(x), rtol=1e-4, atol=1e-5)


def test_layers_that_do_not_fit_are_refused_by_pytorch(calls: list[str]) -> None:
    x, layer = inputs()
    with pytest.raises(RuntimeError):
        linear(x[..., :64], layer)
    layer.bias = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError):
        linear(x, layer)
    assert not calls
