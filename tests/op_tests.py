"""The battery every operator inherits.

An op's test file subclasses :class:`OpTests`, names the op, its cases and its bad calls, and adds
only the tests of its own laws. Everything runs over backend × dtype × case; a backend that cannot
run a call skips with the sentence its ``why_not`` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from call import Call
from choice_tests import ChoiceTests
from gradient_tests import GradientTests
from integration_tests import IntegrationTests
from value_tests import ValueTests


class OpTests(ValueTests, GradientTests, IntegrationTests, ChoiceTests):
    """What an op's test class gives; the four parents hold the tests.

    A case is a dict of sizes and options that ``build`` turns into the op's arguments.
    """

    #: The public function, wrapped in ``staticmethod``.
    op: ClassVar[Callable[..., Any]]
    #: Tensor arguments that carry the compute dtype; the others are parameters.
    activations: ClassVar[tuple[str, ...]]
    #: Every size and option worth a test of values and gradients, by name.
    cases: ClassVar[dict[str, dict[str, Any]]]
    #: Names of the few cases on which everything else is tested.
    representative: ClassVar[tuple[str, ...]]
    #: Cases of a few dozen numbers in all, for gradcheck.
    tiny: ClassVar[dict[str, dict[str, Any]]]
    #: Wrong calls by name: what replaces arguments of the first representative case (a value, or a
    #: function of the argument), the exception, and its whole text.
    bad: ClassVar[dict[str, tuple[dict[str, Any], type[Exception], str]]]
    #: Layouts of call.LAYOUTS that the op refuses (its ``bad`` calls then hold the words).
    refused_layouts: ClassVar[tuple[str, ...]] = ()
    #: Whether backward keeps results of the forward pass besides the arguments.
    saves_results: ClassVar[bool] = False

    @staticmethod
    def build(**case: Any) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        """Random float64 CPU tensors by argument name, and the other arguments."""
        raise NotImplementedError

    @classmethod
    def call(
        cls,
        case: str | dict[str, Any],
        dtype: torch.dtype,
        device: str = "cpu",
        parameter_dtype: torch.dtype | None = None,
    ) -> Call:
        """The case's call, its numbers the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            tensors, options = cls.build(**(cls.cases[case] if isinstance(case, str) else case))
        whole = Call(cls.op, tensors, options, cls.activations).to(device).to(dtype)
        if parameter_dtype is None:
            return whole
        parameters = [name for name in tensors if name not in cls.activations]
        return whole.map(lambda t: t.to(parameter_dtype), parameters)

    @classmethod
    def runnable(cls, call: Call, backend: str) -> Call:
        """The call itself, or a skip with the sentence that says why the backend cannot run it."""
        from clipweather_fast import ops

        answer = ops.explain(cls.op, **call.tensors, **call.options)[backend]
        if not answer.startswith("yes"):
            pytest.skip(f"{backend}: {answer}")
        return call
