"""Calls past the dispatcher: only where nobody would miss it, and with the same results."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from clipweather_fast import ops
from clipweather_fast.ops import _registration
from clipweather_fast.ops._direct import dispatcher_idle, observed, observer_rests, unobserved


def image(**kwargs: object) -> Tensor:
    return torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0), **kwargs)


def filtered(x: Tensor) -> Tensor:
    weight = torch.linspace(-1, 1, 45).view(5, 1, 3, 3)
    return ops.depthwise_conv2d(x, weight, activation="gelu", backend="cpu")


def test_ordinary_tensors_need_no_dispatcher() -> None:
    assert dispatcher_idle((image(), None, "gelu"))
    assert dispatcher_idle((image().requires_grad_(), torch.nn.Parameter(image())))
    with torch.inference_mode():
        assert dispatcher_idle((image(),))


def test_an_observer_keeps_nobody_from_calling_directly() -> None:
    class Looking(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    with observed(), Looking():
        assert dispatcher_idle((image(),))
        with Looking():
            assert not dispatcher_idle((image(),))
        with unobserved():
            assert observer_rests()
    assert not observer_rests()
    with Looking():
        assert not dispatcher_idle((image(),))


def while_faked() -> bool:
    with FakeTensorMode():
        return dispatcher_idle((image(),))


def while_transformed() -> bool:
    seen = []
    torch.func.grad(lambda x: (seen.append(dispatcher_idle((x,))), x.sum())[1])(image())
    return seen[0]


def while_forward_differentiated() -> bool:
    with forward_ad.dual_level():
        return dispatcher_idle((image(),))


def while_profiled() -> bool:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        return dispatcher_idle((image(),))


class Watching(TorchFunctionMode):
    """A mode that looks at functions, as loggers do, and counts our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[object] = []

    def __torch_function__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


class Tagged(Tensor):
    """A subclass that sees functions and adds no dispatch key, as torchvision's images do."""


def while_functions_are_watched() -> bool:
    with Watching():
        return dispatcher_idle((image(),))


def tagged() -> bool:
    return dispatcher_idle((image().as_subclass(Tagged),))


def negated() -> bool:
    return dispatcher_idle((torch.imag(torch.conj(image(dtype=torch.complex64))),))


def subclass() -> bool:
    return dispatcher_idle((FakeTensorMode().from_tensor(image()),))


def without_memory() -> bool:
    return dispatcher_idle((image().to("meta"),))


@pytest.mark.parametrize(
    "situation",
    [
        while_faked,
        while_transformed,
        while_forward_differentiated,
        while_profiled,
        while_functions_are_watched,
        tagged,
        negated,
        subclass,
        without_memory,
    ],
)
def test_whoever_watches_sees_the_operator(situation: Callable[[], bool]) -> None:
    assert situation() is False


def test_lazily_negated_values_are_read_as_they_mean() -> None:
    x = torch.imag(torch.conj(image(dtype=torch.complex64)))
    assert x.is_neg()
    torch.testing.assert_close(filtered(x), filtered(x.clone()), rtol=0, atol=0)


def test_a_function_mode_sees_the_operator() -> None:
    with Watching() as mode:
        watched = filtered(image())
    assert torch.ops.clipweather_fast.depthwise_conv2d in mode.seen
    assert torch.equal(watched, filtered(image()))


def test_a_subclass_comes_back_as_one() -> None:
    y = filtered(image().as_subclass(Tagged))
    assert type(y) is Tagged
    assert torch.equal(y.as_subclass(Tensor), filtered(image()))


def test_a_traced_graph_holds_the_operator() -> None:
    graph = make_fx(filtered)(image()).graph
    assert torch.ops.clipweather_fast.depthwise_conv2d.default in {n.target for n in graph.nodes}


def test_the_profiler_names_the_operator() -> None:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        filtered(image())
    assert "clipweather_fast::depthwise_conv2d" in {e.key for e in profile.key_averages()}


@pytest.mark.parametrize("direct", [True, False])
def test_a_second_derivative_is_refused(direct: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_registration, "dispatcher_idle", lambda arguments: direct)
    x = image().requires_grad_()
    (grad,) = torch.autograd.grad(filtered(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives are not implemented"):
        torch.autograd.grad(grad.sum(), x)


def test_both_ways_give_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for direct in (True, False):
        monkeypatch.setattr(
            _registration, "dispatcher_idle", lambda arguments, direct=direct: direct
        )
        x = image().requires_grad_()
        y = filtered(x)
        with torch.no_grad():
            plain = filtered(x)
        results.append((y.detach(), plain, *torch.autograd.grad(y.square().sum(), x)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
