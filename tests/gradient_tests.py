"""The battery's tests of gradients: gradcheck, subsets, what is kept, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from call import assert_same_bits, output_gradients, results


class GradientTests:
    def test_gradcheck(self, double_backend: str, tiny: str) -> None:
        call = self.runnable(self.call(self.tiny[tiny], torch.float64), double_backend)
        names = list(call.present)

        def function(*tensors: Tensor) -> tuple[Tensor, ...]:
            return call.with_tensors(**dict(zip(names, tensors, strict=True)))(
                backend=double_backend
            )

        inputs = [call.present[name].requires_grad_() for name in names]
        assert torch.autograd.gradcheck(function, inputs)

    def test_gradient_to_one_argument(self, backend: str, device: str, few: str) -> None:
        """Each argument's gradient is the same whether or not others are wanted too."""
        call = self.runnable(self.call(few, torch.float32, device), backend)
        expected = results(call, backend=backend)
        for name in call.present:
            found = results(call, backend=backend, requires_grad=[name])
            assert_same_bits(found, {key: expected[key] for key in found})

    def test_gradient_through_one_output(self, backend: str, device: str, few: str) -> None:
        call = self.runnable(self.call(few, torch.float32, device), backend)
        count = len(call(backend=backend))
        if count == 1:
            pytest.skip("the case has one output")
        total = results(call, backend=backend)
        parts = [results(call, backend=backend, outputs=[i]) for i in range(count)]
        for name in (f"grad_{name}" for name in call.present):
            summed = sum(part[name] for part in parts)
            torch.testing.assert_close(summed, total[name], rtol=1e-4, atol=1e-4)
        for i in range(count):
            # An unused output and one whose gradient is zero are the same thing.
            zero = results(call, backend=backend, reshape=_only(i))
            for name in (f"grad_{name}" for name in call.present):
                torch.testing.assert_close(parts[i][name], zero[name], rtol=1e-5, atol=1e-5)

    def test_backward_twice(self, backend: str, device: str, few: str) -> None:
        call = self.runnable(self.call(few, torch.float32, device), backend)
        leaf = call.map(lambda t: t.requires_grad_())
        inputs = list(leaf.present.values())
        ys = leaf(backend=backend)
        gradients = output_gradients(ys)
        first = torch.autograd.grad(ys, inputs, gradients, retain_graph=True)
        second = torch.autograd.grad(ys, inputs, gradients)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        with pytest.raises(RuntimeError, match="second time"):
            torch.autograd.grad(ys, inputs, gradients)

    def test_second_derivative(self, backend: str, device: str, few: str) -> None:
        """The reference has one; the kernels say that they have none instead of giving zeros."""
        call = self.runnable(self.call(few, torch.float32, device), backend)
        leaf = call.map(lambda t: t.requires_grad_())
        inputs = list(leaf.present.values())
        ys = leaf(backend=backend)
        grads = torch.autograd.grad(ys, inputs, output_gradients(ys), create_graph=True)
        loss = sum(g.square().sum() for g in grads)
        if backend == "reference":
            second = torch.autograd.grad(loss, inputs, allow_unused=True, materialize_grads=True)
            assert all(torch.isfinite(g).all() for g in second)
            return
        name = self.op.__name__
        words = f"{name}: second derivatives are not implemented; use backend='reference'"
        with pytest.raises(RuntimeError, match=words):
            torch.autograd.grad(loss, inputs)

    def test_saves_only_arguments(self, backend: str, device: str, few: str) -> None:
        """Backward recomputes what it can: nothing of an image's size is kept but the arguments."""
        call = self.runnable(self.call(few, torch.float32, device), backend)
        if backend == "reference" or self.saves_results:
            pytest.skip("keeps results of the forward pass")
        leaf = call.map(lambda t: t.requires_grad_())
        known = {t.data_ptr() for t in leaf.present.values()}
        saved: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
            leaf(backend=backend)
        assert saved
        assert all(t.data_ptr() in known for t in saved)

    def test_changed_argument_is_noticed(self, backend: str, device: str, few: str) -> None:
        """Writing to a saved argument before backward raises, as everywhere in torch."""
        call = self.runnable(self.call(few, torch.float32, device), backend)
        name = self.activations[0]
        base = call.present[name].clone().requires_grad_()
        changed = base * 1
        ys = call.with_tensors(**{name: changed})(backend=backend)
        with torch.no_grad():
            changed.add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            torch.autograd.grad(ys, base, output_gradients(ys))


def _only(number: int):
    """Zero gradients for every output but one."""
    seen = iter(range(100))
    return lambda t: t if next(seen) == number else torch.zeros_like(t)
