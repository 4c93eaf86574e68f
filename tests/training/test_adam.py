"""Adam on channels-last parameters: PyTorch's own values, whatever format a gradient comes in."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from clipweather_fast.training.adam import Adam, AdamW

FORMATS = {"last": torch.channels_last, "first": torch.contiguous_format}
SHAPES = [(8, 4, 3, 3), (5, 1, 3, 3), (6, 7), (9,), ()]


def trained(
    kind: type[torch.optim.Adam], formats: tuple[str, str], **options: object
) -> tuple[list[nn.Parameter], torch.optim.Adam]:
    """Parameters after three steps; formats of theirs, and of their gradients."""
    generator = torch.Generator().manual_seed(0)
    parameters = []
    for shape in SHAPES:
        value = torch.randn(shape, generator=generator)
        parameters.append(nn.Parameter(lying(value, formats[0])))
    optimizer = kind(parameters, lr=0.1, weight_decay=0.01, **options)  # type: ignore[arg-type]
    for _ in range(3):
        for parameter in parameters:
            value = torch.randn(parameter.shape, generator=generator)
            parameter.grad = lying(value, formats[1])
        optimizer.step()
    return parameters, optimizer


def lying(value: torch.Tensor, form: str) -> torch.Tensor:
    return value.clone(memory_format=FORMATS[form]) if value.dim() == 4 else value.clone()


@pytest.mark.parametrize("amsgrad", [False, True])
@pytest.mark.parametrize("gradient", FORMATS)
@pytest.mark.parametrize("parameter", FORMATS)
@pytest.mark.parametrize("kind", [Adam, AdamW])
def test_steps_are_those_of_pytorchs_plain_loop(
    kind: type[torch.optim.Adam], parameter: str, gradient: str, amsgrad: bool
) -> None:
    plain = torch.optim.AdamW if kind is AdamW else torch.optim.Adam
    ours, optimizer = trained(kind, (parameter, gradient), fused=True, amsgrad=amsgrad)
    theirs, _ = trained(plain, (parameter, gradient), foreach=False, amsgrad=amsgrad)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)
        assert one.stride() == other.stride()
        state = optimizer.state[one]
        assert state["exp_avg"].shape == state["exp_avg_sq"].shape == one.shape
        assert state["exp_avg"].stride() == one.stride()
        assert ("max_exp_avg_sq" in state) == amsgrad


def test_states_of_another_format_go_on_where_they_are_kept() -> None:
    """As after load_state_dict of a run whose weights lay otherwise."""
    ours, optimizer = trained(Adam, ("last", "last"), fused=True)
    theirs, plain = trained(torch.optim.Adam, ("last", "last"), foreach=False)
    image = ours[0]
    optimizer.state[image]["exp_avg"] = optimizer.state[image]["exp_avg"].contiguous()
    for parameters, both in ((ours, optimizer), (theirs, plain)):
        for _ in range(2):
            for parameter in parameters:
                parameter.grad = torch.ones_like(parameter)
            both.step()
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


def test_memory_beside_a_parameter_is_not_touched() -> None:
    """PyTorch's fused kernel would write there."""
    whole = torch.zeros(6, 8)
    parameter = nn.Parameter(whole[:, ::2])
    parameter.grad = torch.ones(6, 4)
    optimizer = Adam([parameter], lr=0.1, fused=True)
    with pytest.raises(ValueError, match="dense in memory, got one of shape"):
        optimizer.step()
    assert not bool(whole.any())


@pytest.mark.parametrize("order", [(1, 0, 2), (2, 1, 0)])
def test_any_order_of_axes(order: tuple[int, ...]) -> None:
    found = []
    for kind, options in ((Adam, {"fused": True}), (torch.optim.Adam, {"foreach": False})):
        torch.manual_seed(0)
        parameter = nn.Parameter(torch.randn(3, 4, 5).permute(order))
        optimizer = kind([parameter], lr=0.1, **options)  # type: ignore[arg-type]
        for _ in range(2):
            parameter.grad = torch.randn(parameter.shape)
            optimizer.step()
        found.append(parameter.detach())
    torch.testing.assert_close(*found)


def test_unfused_steps_are_left_alone() -> None:
    ours, _ = trained(Adam, ("last", "first"), foreach=True)
    theirs, _ = trained(torch.optim.Adam, ("last", "first"), foreach=True)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_step_copies_no_gradient() -> None:
    class Seen(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.dense: list[bool] = []

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if "_fused_adam_" in str(func):
                self.dense += [t.is_contiguous() for tensors in args[:4] for t in tensors]
            return func(*args, **(kwargs or {}))

    parameters, optimizer = trained(Adam, ("last", "last"), fused=True)
    with Seen() as seen:
        optimizer.step()
    assert seen.dense == [True] * (4 * len(parameters))


def test_a_gradient_of_another_format_is_left_unscaled() -> None:
    """As PyTorch's fused kernel leaves it, which divides by the scale where it lies."""
    found = []
    for form in FORMATS:
        parameter = nn.Parameter(lying(torch.ones(8, 4, 3, 3), "last"))
        optimizer = Adam([parameter], lr=0.1, fused=True)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        scaler.scale(torch.zeros(()))
        parameter.grad = lying(torch.full((8, 4, 3, 3), 4.0), form)
        scaler.step(optimizer)
        found.append(parameter.detach())
        assert parameter.grad is not None
        assert bool((parameter.grad == 1).all())
    assert torch.equal(*found)
