"""Two modules, one function: outputs and every gradient under the project's tolerance rule."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from call import Call, results
from tolerance import assert_as_good_as_reference


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
    assert_as_good_as_reference(results(call), truth, results)


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
