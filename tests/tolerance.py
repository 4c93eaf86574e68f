"""The one tolerance rule of the project.

Truth is the reference run in float64 on the very (already rounded) inputs the kernel got. The
reference run in the kernel's own dtype has some largest error over a tensor; a kernel may have
twice that, and a few units in the last place of the tensor's largest true value. There is no
looser mode.

Nothing finer than float64 exists to judge float64 by, so the reference's error there is the one it
makes in float32, scaled by the ratio of the two units; truth's own error comes on top.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from call import Call

ULPS = 4

Results = Mapping[str, Tensor]


def largest(t: Tensor) -> float:
    """The largest magnitude; NaN if there is any NaN, 0 if there is nothing."""
    return t.abs().max().item() if t.numel() else 0.0


def largest_error(got: Tensor, truth: Tensor) -> float:
    return largest(got.detach().double() - truth.double())


def reference_errors(call: Call, run: Callable[[Call], Results]) -> dict[str, float]:
    """How wrong the reference is, per result, in the dtype of ``call``."""
    if call.dtype != torch.float64:
        truth, own = run(call.to(torch.float64)), run(call)
        return {name: largest_error(own[name], truth[name]) for name in truth}
    rounded = call.to(torch.float32)
    errors = reference_errors(rounded, run)
    ratio = torch.finfo(torch.float64).eps / torch.finfo(torch.float32).eps
    return {name: error * ratio * 1.5 for name, error in errors.items()}


def assert_as_good_as_reference(
    got: Results, call: Call, run_reference: Callable[[Call], Results]
) -> None:
    """Fails unless every tensor of ``got`` obeys the rule of this module.

    ``run_reference`` gives the reference's results for a call, under the same names as ``got``.
    """
    truth = run_reference(call.to(torch.float64))
    errors = reference_errors(call, run_reference)
    assert set(got) == set(truth), f"got {sorted(got)}, expected {sorted(truth)}"
    for name, true in truth.items():
        result = got[name]
        assert result.shape == true.shape, f"{name}: {tuple(result.shape)} != {tuple(true.shape)}"
        error, scale = largest_error(result, true), largest(true)
        allowed = 2 * errors[name] + ULPS * torch.finfo(result.dtype).eps * scale
        assert error <= allowed, (
            f"{name}: largest error {error:.3g} of values up to {scale:.3g}; allowed {allowed:.3g} "
            f"(the reference's own is {errors[name]:.3g} in {call.dtype})"
        )
