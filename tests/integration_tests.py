"""The battery's tests of how the ops sit in PyTorch: opcheck, torch.compile, autocast, meta."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from call import LAYOUTS, Call, assert_same_bits, output_gradients, results


class _Recorder(TorchDispatchMode):
    """Keeps the registered operators that a call reaches, with their arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), keywords: Any = None
    ) -> Any:
        if function.namespace == "clipweather_fast":
            self.calls.append((function, arguments))
        return function(*arguments, **(keywords or {}))


def registered_calls(call: Call, backend: str) -> list[tuple[Any, tuple[Any, ...]]]:
    """The registered forward operator (wanting every gradient) and the backward one it leads to."""
    with _Recorder() as recorder:
        results(call, backend=backend)
    found = []
    for function, arguments in recorder.calls:
        forward = not function._schema.name.endswith("_backward")
        found.append((function, tuple(_leaf(a, forward) for a in arguments)))
    return found


def _leaf(argument: Any, requires_grad: bool) -> Any:
    if not isinstance(argument, Tensor):
        return argument
    return argument.detach().requires_grad_(requires_grad)


class IntegrationTests:
    @pytest.mark.full
    # opcheck itself looks at the .grad of tensors that are not leaves.
    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "sliced"])
    def test_opcheck(self, backend: str, device: str, layout: str, few: str) -> None:
        if backend == "reference" or layout in self.refused_layouts:
            pytest.skip("nothing is registered for this")
        call = self.call(few, torch.float32, device).map(LAYOUTS[layout], self.activations)
        found = registered_calls(self.runnable(call, backend), backend)
        assert {f._schema.name.endswith("_backward") for f, _ in found} == {True, False}
        for function, arguments in found:
            torch.library.opcheck(function, arguments)

    @pytest.mark.full
    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted"])
    def test_compile(self, backend: str, device: str, layout: str, few: str) -> None:
        call = self.call(few, torch.float32, device).map(LAYOUTS[layout], self.activations)
        self._compare_compiled(self.runnable(call, backend), backend, "aot_eager")

    @pytest.mark.full
    def test_compile_dynamic_sizes(self, backend: str, device: str, few: str) -> None:
        call = self.call(few, torch.float32, device)
        self._compare_compiled(self.runnable(call, backend), backend, "aot_eager", dynamic=True)

    @pytest.mark.full
    def test_compile_automatic_choice(self, few: str) -> None:
        call = self.call(few, torch.float32)
        self._compare_compiled(call, None, "aot_eager")

    @pytest.mark.full
    def test_compile_inductor(self, backend: str, device: str) -> None:
        if backend == "reference":
            pytest.skip("the reference is plain PyTorch")
        call = self.call(self.representative[0], torch.float32, device)
        self._compare_compiled(self.runnable(call, backend), backend, "inductor")

    @staticmethod
    def _compare_compiled(call: Call, backend: str | None, compiler: str, **how: Any) -> None:
        names = list(call.tensors)

        def function(*tensors: Tensor | None) -> tuple[Tensor, ...]:
            return call.with_tensors(**dict(zip(names, tensors, strict=True)))(backend=backend)

        def plain(**arguments: Any) -> Any:
            return call.op(**arguments, **call.options, backend=backend)

        torch.compiler.reset()
        compiled = torch.compile(plain, fullgraph=True, backend=compiler, **how)
        through = Call(compiled, call.tensors, {}, call.activations)
        found, expected = results(through), results(call, backend=backend)
        if backend == "reference" or backend is None:
            for name, t in expected.items():
                torch.testing.assert_close(found[name], t, rtol=1e-4, atol=1e-4)
        else:
            assert_same_bits(found, expected)
        for name, t in expected.items():
            if name.startswith("output"):
                assert found[name].stride() == t.stride(), name

    def test_autocast(self, backend: str, device: str, low_dtype: torch.dtype, few: str) -> None:
        """Under autocast float32 activations are computed with in the autocast dtype."""
        call = self.call(few, torch.float32, device)
        lowered = call.map(lambda t: t.to(low_dtype), self.activations)
        self.runnable(lowered, backend)
        expected = results(lowered, backend=backend)
        with torch.autocast(device, low_dtype):
            found = results(call, backend=backend)
        for name, t in found.items():
            assert t.dtype == (low_dtype if name.startswith("output") else torch.float32)
            assert torch.equal(t.to(expected[name].dtype), expected[name]), name

    def test_autocast_leaves_float64_alone(self, double_backend: str, few: str) -> None:
        call = self.runnable(self.call(few, torch.float64), double_backend)
        with torch.autocast("cpu", torch.bfloat16):
            found = results(call, backend=double_backend)
        assert_same_bits(found, results(call, backend=double_backend))

    def test_meta_tensors(self, few: str) -> None:
        """Shapes can be worked out without data."""
        call = self.call(few, torch.float32)
        expected = results(call, backend="reference")
        meta = call.to("meta")
        leaf = meta.map(lambda t: t.requires_grad_())
        for i, y in enumerate(leaf()):
            assert y.device.type == "meta"
            assert y.shape == expected[f"output {i}"].shape

    def test_checkpointed(self, backend: str, device: str, few: str) -> None:
        """Activation checkpointing runs the forward pass again and gets the same gradients."""
        call = self.runnable(self.call(few, torch.float32, device), backend)
        leaf = call.map(lambda t: t.requires_grad_())
        inputs = list(leaf.present.values())
        ys = torch.utils.checkpoint.checkpoint(
            lambda *_: leaf(backend=backend), *inputs, use_reentrant=False
        )
        found = torch.autograd.grad(ys, inputs, output_gradients(ys))
        expected = results(call, backend=backend)
        for name, g in zip(leaf.present, found, strict=True):
            assert torch.equal(g, expected[f"grad_{name}"]), name
