"""The battery's tests of values: dtypes, sizes, layouts, repeatable bits."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from call import LAYOUTS, assert_same_bits, results
from tolerance import assert_as_good_as_reference


def reference_results(call: Any) -> Any:
    return results(call, backend="reference")


class ValueTests:
    def test_values_and_gradients(
        self, backend: str, device: str, dtype: torch.dtype, case: str
    ) -> None:
        call = self.runnable(self.call(case, dtype, device), backend)
        got = results(call, backend=backend)
        assert all(t.dtype == dtype for t in got.values())
        assert_as_good_as_reference(got, call, reference_results)

    def test_float32_parameters(
        self, backend: str, device: str, low_dtype: torch.dtype, few: str
    ) -> None:
        call = self.call(few, low_dtype, device, parameter_dtype=torch.float32)
        if set(call.tensors) == set(call.activations):
            pytest.skip("the operator has no parameters")
        got = results(self.runnable(call, backend), backend=backend)
        for name, t in call.present.items():
            assert got[f"grad_{name}"].dtype == t.dtype
        assert_as_good_as_reference(got, call, reference_results)

    @pytest.mark.parametrize("layout", LAYOUTS)
    def test_layouts(self, backend: str, device: str, layout: str, few: str) -> None:
        if layout in self.refused_layouts:
            pytest.skip("the operator refuses this layout, as its bad calls show")
        # Equal keys or equal values would make gradients of attention vanish but for rounding.
        names = self.activations[:1] if layout == "expanded_inside" else self.activations
        call = self.call(few, torch.float32, device).map(LAYOUTS[layout], names)
        got = results(self.runnable(call, backend), backend=backend)
        assert_as_good_as_reference(got, call, reference_results)

    def test_one_tensor_in_another_layout(self, backend: str, device: str, few: str) -> None:
        """Each tensor alone, parameters too, lies inside a larger one of NaN."""
        call = self.runnable(self.call(few, torch.float32, device), backend)
        for name in call.present:
            moved = call.map(LAYOUTS["sliced"], [name])
            got = results(moved, backend=backend)
            assert_as_good_as_reference(got, call, reference_results)

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
    def test_memory_format_is_kept(self, backend: str, device: str, layout: str, few: str) -> None:
        call = self.call(few, torch.float32, device).map(LAYOUTS[layout], self.activations)
        first = call.present[self.activations[0]]
        for y in self.runnable(call, backend)(backend=backend):
            if y.shape == first.shape:
                assert y.stride() == first.stride()

    @pytest.mark.parametrize(
        "layout", ["channels_last", "sliced", "transposed", "every_second", "expanded_batch"]
    )
    def test_output_gradient_layouts(
        self, backend: str, device: str, layout: str, few: str
    ) -> None:
        call = self.runnable(self.call(few, torch.float32, device), backend)

        def run_reference(c: Any) -> Any:
            return results(c, backend="reference", reshape=LAYOUTS[layout])

        got = results(call, backend=backend, reshape=LAYOUTS[layout])
        assert_as_good_as_reference(got, call, run_reference)

    def test_summed_output(self, backend: str, device: str, few: str) -> None:
        """``y.sum().backward()`` hands a gradient of stride 0 everywhere."""
        call = self.runnable(self.call(few, torch.float32, device), backend)
        ones = {"reshape": lambda t: torch.ones((), device=t.device, dtype=t.dtype).expand_as(t)}

        def run_reference(c: Any) -> Any:
            return results(c, backend="reference", **ones)

        assert_as_good_as_reference(results(call, backend=backend, **ones), call, run_reference)

    def test_without_gradients(
        self, backend: str, device: str, dtype: torch.dtype, few: str
    ) -> None:
        """no_grad and inference mode give the bits of the differentiable pass."""
        call = self.runnable(self.call(few, dtype, device), backend)
        expected = call.map(lambda t: t.requires_grad_())(backend=backend)
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                found = call(backend=backend)
            assert all(torch.equal(y, z) for y, z in zip(found, expected, strict=True))
            assert not any(y.requires_grad for y in found)

    def test_arguments_are_left_alone(self, backend: str, device: str, few: str) -> None:
        call = self.runnable(self.call(few, torch.float32, device), backend)
        before = {name: t.clone() for name, t in call.present.items()}
        found = results(call, backend=backend)
        for name, t in call.present.items():
            assert torch.equal(t, before[name]), f"{name} was written to"
            assert all(t.data_ptr() != r.data_ptr() for r in found.values())

    def test_results_repeat(self, backend: str, device: str, dtype: torch.dtype, few: str) -> None:
        call = self.runnable(self.call(few, dtype, device), backend)
        assert_same_bits(results(call, backend=backend), results(call, backend=backend))

    def test_thread_count_changes_no_bit(self, dtype: torch.dtype, few: str, only_cpu: str) -> None:
        call = self.runnable(self.call(few, dtype), only_cpu)
        threads = torch.get_num_threads()
        found = []
        try:
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                found.append(results(call, backend=only_cpu))
        finally:
            torch.set_num_threads(threads)
        assert_same_bits(found[0], found[1])
        assert_same_bits(found[0], found[2])

    def test_several_python_threads(self, backend: str, device: str, few: str) -> None:
        call = self.runnable(self.call(few, torch.float32, device), backend)
        expected = results(call, backend=backend)
        with ThreadPoolExecutor(4) as pool:
            for found in pool.map(lambda _: results(call, backend=backend), range(12)):
                assert_same_bits(found, expected)
