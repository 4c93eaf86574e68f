"""Shows that an accelerated block computes what the original did, before the swap is kept.

Both forwards run on seeded random tokens with the block's own parameters, in float64 on the CPU
and on the reference backend, so that the only possible difference is one of structure and the
comparison can be sharp. Values, and the gradients of the tokens and of every parameter, must agree.
The network is left as it was: no hook is called, no mode, gradient or random state changes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clipweather_fast.models._structure import AttentionRoles, MlpRoles
from clipweather_fast.ops import use_backend

__all__ = ["why_not_equal"]

#: In float64, relative to the largest value: far above rounding, far below any other formula.
TOLERANCE = 1e-9
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def why_not_equal(
    block: nn.Module, accelerated: type[nn.Module], roles: MlpRoles | AttentionRoles
) -> str | None:
    """None if ``block`` computes the same as an instance of ``accelerated``, else how it differs.

    The block has its original class again when this returns.
    """
    original = type(block)
    arguments = _arguments(block, roles)
    with _undisturbed(block):
        try:
            expected = _run(block, arguments)
        except Exception as error:  # foreign code, called on a guess of what it takes
            return f"a trial with random tokens failed: {type(error).__name__}: {error}"
        try:
            block.__class__ = accelerated
            got = _run(block, arguments)
        except Exception as error:  # keys of another width, for example
            return f"the fused block cannot compute it: {type(error).__name__}: {error}"
        finally:
            block.__class__ = original
    return _difference(expected, got)


def _arguments(block: nn.Module, roles: MlpRoles | AttentionRoles) -> tuple[Any, ...]:
    name = roles.first if isinstance(roles, MlpRoles) else roles.query
    first = cast(nn.Linear, block.get_submodule(name))
    steps = [1, *(m.stride[0] for m in block.modules() if isinstance(m, nn.Conv2d))]
    height, width = 2 * max(steps) + 3, 3 * max(steps) + 2
    generator = torch.Generator(device="cpu").manual_seed(0)
    shape = (2, height * width, first.in_features)
    x = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return (x, height, width) if roles.pair else (x, (height, width))


def _run(block: nn.Module, arguments: tuple[Any, ...]) -> list[Tensor | None]:
    """Outputs, then the gradients of their weighted sum by the tokens and every parameter."""
    tensors = {
        name: value.detach().to("cpu", torch.float64 if value.is_floating_point() else value.dtype)
        for name, value in (*block.named_parameters(), *block.named_buffers())
    }
    leaves = [v.requires_grad_() for v in tensors.values() if v.is_floating_point()]
    x = arguments[0].clone().requires_grad_()
    output = functional_call(block, tensors, (x, *arguments[1:]))
    outputs = list(output) if isinstance(output, (tuple, list)) else [output]
    total = torch.zeros((), dtype=torch.float64, device="cpu")
    for value in filter(torch.is_tensor, outputs):
        total = (
            total + (value * torch.arange(value.numel(), device="cpu").cos().view_as(value)).sum()
        )
    grads = torch.autograd.grad(total, [x, *leaves], allow_unused=True)
    return [*outputs, *grads]


@contextmanager
def _undisturbed(block: nn.Module) -> Iterator[None]:
    modules = list(block.modules())
    modes = [module.training for module in modules]
    hooks = [{name: vars(module)[name] for name in HOOKS} for module in modules]
    random_state = torch.get_rng_state()
    for module in modules:
        module.training = False
        vars(module).update({name: OrderedDict() for name in HOOKS})
    try:
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            torch.autocast("cpu", enabled=False),
            use_backend("reference"),
        ):
            yield
    finally:
        torch.set_rng_state(random_state)
        for module, mode, kept in zip(modules, modes, hooks, strict=True):
            module.training = mode
            vars(module).update(kept)


def _difference(expected: list[Tensor | None], got: list[Tensor | None]) -> str | None:
    if len(expected) != len(got):
        return f"it returns {len(expected)} values where the fused block returns {len(got)}"
    for one, other in zip(expected, got, strict=True):
        if one is None and other is None:
            continue
        if one is None or other is None or one.shape != other.shape:
            return "it returns or differentiates other tensors than the fused block"
        scale = one.abs().max().item() if one.numel() else 0.0
        gap = (one - other).abs().max().item() if one.numel() else 0.0
        if not gap <= TOLERANCE * max(scale, 1e-3):
            return f"it computes something else than the fused block (they differ by {gap:.1e})"
    return None
