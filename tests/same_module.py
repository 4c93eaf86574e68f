"""Two modules, one function: outputs and every gradient under the project's tolerance rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from call import Call, results
from tolerance import assert_as_good_as_reference, largest_error


def module_call(module: nn.Module, x: Tensor, *arguments: Any) -> Call:
    """``module(x, *arguments)`` as a function of ``x`` and of its parameters."""

    def run(x: Tensor, **parameters: Tensor) -> Any:
        return functional_call(module, parameters, (x, *arguments))

    parameters = {name: p.detach() for name, p in module.named_parameters()}
    return Call(run, {"x": x, **parameters}, {}, ("x",))


def assert_same_function(fast: nn.Module, original: nn.Module, x: Tensor, *arguments: Any) -> None:
    """``fast`` is as right as ``original`` is, both with the parameters of ``fast``."""
    call = module_call(fast, x, *arguments)
    truth = module_call(original, x, *arguments)
    truth = truth.with_tensors(**{name: call.tensors[name] for name in truth.tensors})
    assert_as_good_as_reference(results(call), truth, less_lucky_results)


def less_lucky_results(call: Call) -> dict[str, Tensor]:
    """The worse of two runs, tensor by tensor: as called, and with inputs off by one unit at most.

    A module chains many sums, some of which cancel (a query's bias has almost no gradient), so the
    error of one run may be small by luck. The second run shows what such a tensor can be known to.
    """
    once = results(call)
    if call.dtype == torch.float64:
        return once
    truth, nudged = results(call.to(torch.float64)), results(call.map(_nudged))
    return {
        name: max(once[name], nudged[name], key=lambda t, true=true: largest_error(t, true))
        for name, true in truth.items()
    }


def _nudged(t: Tensor) -> Tensor:
    """Every value moved by a random part of one unit in the last place."""
    generator = torch.Generator().manual_seed(9)
    part = 2 * torch.rand(t.shape, generator=generator, dtype=torch.float64) - 1
    return (t.double() * (1 + torch.finfo(t.dtype).eps * part)).to(t.dtype)


def randomised(module: nn.Module) -> nn.Module:
    """The module with every parameter random, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 4
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(noise / fan_in**0.5)
    return module


def tokens(batch: int, height: int, width: int, channels: int) -> Tensor:
    """Random tokens (N, H·W, C)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(batch, height * width, channels, generator=generator)
