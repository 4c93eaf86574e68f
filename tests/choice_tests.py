"""The battery's tests of the choice of a backend, and of the words for wrong calls."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clipweather_fast import ops
from clipweather_fast.ops import BACKENDS, BackendUnavailable


class ChoiceTests:
    def test_bad_call(self, bad: str) -> None:
        changes, exception, text = self.bad[bad]
        call = self.call(self.representative[0], torch.float32)
        arguments = {**call.tensors, **call.options}
        for name, change in changes.items():
            arguments[name] = change(arguments.get(name)) if callable(change) else change
        with pytest.raises(exception, match=f"^{re.escape(text)}$"):
            self.op(**arguments)
        if "backend" not in changes:
            with pytest.raises(exception, match=f"^{re.escape(text)}$"):
                ops.explain(self.op, **arguments)

    def test_unavailable_backend_raises(self, dtype: torch.dtype) -> None:
        call = self.call(self.representative[0], dtype)
        answers = ops.explain(self.op, **call.tensors, **call.options)
        assert set(answers) == set(BACKENDS)
        for backend, sentence in answers.items():
            if sentence.startswith("yes"):
                continue
            text = f"{self.op.__name__}: backend {backend!r} cannot run this call: {sentence}; "

            def expected(auto: str, text: str = text) -> pytest.RaisesExc[BackendUnavailable]:
                words = f"{text}{auto} takes the best one that can"
                return pytest.raises(BackendUnavailable, match=f"^{re.escape(words)}$")

            with expected("backend='auto'"):
                call(backend=backend)
            with ops.use_backend(backend), expected("use_backend('auto')"):
                call()
            with pytest.MonkeyPatch.context() as patch, expected("CLIPWEATHER_BACKEND=auto"):
                patch.setenv("CLIPWEATHER_BACKEND", backend)
                call()

    def test_gpu_backends_refuse_float64(self) -> None:
        call = self.call(self.representative[0], torch.float64)
        answers = ops.explain(self.op, **call.tensors, **call.options)
        assert answers["triton"] == (
            "the Triton kernels take float32, bfloat16 or float16, got torch.float64"
        )
        assert not answers["cuda"].startswith("yes")

    def test_automatic_choice_is_the_explained_one(self, dtype: torch.dtype, few: str) -> None:
        call = self.call(few, dtype)
        answers = ops.explain(self.op, **call.tensors, **call.options)
        chosen = [name for name, answer in answers.items() if answer == "yes (chosen)"]
        assert len(chosen) == 1
        for ask in ({}, {"backend": "auto"}):
            pairs = zip(call(**ask), call(backend=chosen[0]), strict=True)
            assert all(torch.equal(y, z) for y, z in pairs)

    def test_ways_of_naming_a_backend(self, backend: str, device: str, few: str) -> None:
        call = self.runnable(self.call(few, torch.float32, device), backend)
        expected = call(backend=backend)
        found = []
        with ops.use_backend(backend):
            found.append(call())
            with ops.use_backend("auto"):
                call()
            found.append(call())
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CLIPWEATHER_BACKEND", backend)
            found.append(call())
        for ys in found:
            assert all(torch.equal(y, z) for y, z in zip(ys, expected, strict=True))

    def test_argument_beats_context_beats_environment(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        call = self.call(self.representative[0], torch.float64)
        monkeypatch.setenv("CLIPWEATHER_BACKEND", "triton")  # cannot run float64
        with pytest.raises(BackendUnavailable):
            call()
        with ops.use_backend("reference"):
            call()
            with pytest.raises(BackendUnavailable):
                call(backend="triton")

    def test_context_is_of_its_own_thread(self) -> None:
        call = self.call(self.representative[0], torch.float64)
        with ops.use_backend("triton"), ThreadPoolExecutor(1) as pool:
            with pytest.raises(BackendUnavailable):
                call()
            pool.submit(call).result()

    def test_unknown_backend(self, monkeypatch: pytest.MonkeyPatch) -> None:
        call = self.call(self.representative[0], torch.float32)
        words = "must be one of auto, cuda, triton, cpu, reference, got 'gpu'"
        with pytest.raises(ValueError, match=f"^{self.op.__name__}: backend {words}$"):
            call(backend="gpu")
        with (
            pytest.raises(ValueError, match=f"^use_backend: name {words}$"),
            ops.use_backend("gpu"),
        ):
            pass
        monkeypatch.setenv("CLIPWEATHER_BACKEND", "gpu")
        with pytest.raises(ValueError, match=f"^CLIPWEATHER_BACKEND {words}$"):
            call()
