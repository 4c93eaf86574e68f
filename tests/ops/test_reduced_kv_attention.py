"""reduced_kv_attention: the battery, and the laws of attention."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from call import LAYOUTS, output_gradients, results
from clipweather_fast import explain, ops, use_backend
from clipweather_fast.ops import _native, _triton
from clipweather_fast.ops._native import CPU_ISAS, core, why_not_loaded
from clipweather_fast.ops.reduced_kv_attention import native_cpu
from op_tests import OpTests

HEAD_DIMS = (1, 3, 64, 80, 160, 256)
#: Widths whose last vector is half full or less, behind 1 to 4 others, on processors that have 16.
HALVES = (20, 24, 40, 56, 72)
#: Widths with and without half a block of parts, and the widest.
IN_PARTS = (17, 64, 80, 160, 256)
KEYS = (1, 48, 64, 255, 256, 2000)


class TestReducedKvAttention(OpTests):
    op = staticmethod(ops.reduced_kv_attention)
    activations = ("q", "k", "v")
    saves_results = True
    cases = {
        "plain": {},
        "two_images_two_heads": {"n": 2, "queries": 70, "keys": 33, "heads": 2, "d": 20},
        **{f"d{d}": {"queries": 29, "keys": 50, "d": d} for d in HEAD_DIMS},
        **{f"keys{keys}": {"queries": 26, "keys": keys, "d": 16} for keys in KEYS},
        "keys_and_width_past_a_block": {"queries": 26, "keys": 300, "d": 160},
        **{f"half_a_vector{d}": {"n": 1, "queries": 26, "keys": 300, "d": d} for d in HALVES},
        "queries_past_a_task": {"n": 1, "queries": 800, "keys": 20, "heads": 1, "d": 8},
        "queries_and_keys_past_a_task": {"n": 1, "queries": 800, "keys": 300, "heads": 1, "d": 8},
        # Sizes of which a matrix unit multiplies float32 in parts.
        "in_parts": {"queries": 70, "keys": 130},
        **{f"in_parts_d{d}": {"n": 1, "queries": 97, "keys": 129, "d": d} for d in IN_PARTS},
        "in_parts_past_a_block": {"n": 1, "queries": 145, "keys": 900, "heads": 2, "d": 33},
        "in_parts_past_a_task": {"n": 1, "queries": 800, "keys": 70, "heads": 1, "d": 20},
        "in_parts_long_tasks": {"n": 1, "queries": 3100, "keys": 400, "heads": 4, "d": 20},
        "in_parts_negative_scale": {"n": 1, "queries": 64, "keys": 200, "scale": -0.4},
        "many_heads": {"n": 5, "queries": 3, "keys": 7, "heads": 5, "d": 4},
        "one_query": {"queries": 1, "keys": 9},
        "one_of_each": {"n": 1, "queries": 1, "keys": 1, "heads": 1, "d": 1},
        "scale": {"scale": 0.3},
        "negative_scale": {"scale": -0.4},
        "no_scale": {"scale": 0},
        "no_image": {"n": 0},
        "no_query": {"queries": 0},
        "no_head": {"heads": 0},
    }
    representative = ("plain", "two_images_two_heads", "in_parts")
    tiny = {
        "few_keys": {"n": 1, "queries": 4, "keys": 3, "heads": 2, "d": 3},
        "one_key": {"n": 1, "queries": 3, "keys": 1, "heads": 1, "d": 2},
        "scaled": {"n": 2, "queries": 2, "keys": 5, "heads": 1, "d": 2, "scale": -1.5},
    }
    bad = {
        "q_is_a_list": (
            {"q": [1.0]},
            TypeError,
            "reduced_kv_attention: q must be a tensor, got list",
        ),
        "q_is_integer": (
            {"q": lambda q: q.int()},
            TypeError,
            "reduced_kv_attention: q must be float32, bfloat16, float16 or float64, got "
            "torch.int32; convert it with q.float()",
        ),
        "q_has_three_axes": (
            {"q": lambda q: q[0]},
            ValueError,
            "reduced_kv_attention: q must be (N, Lq, heads, d), got (29, 3, 24)",
        ),
        "k_has_three_axes": (
            {"k": lambda k: k[0]},
            ValueError,
            "reduced_kv_attention: k must be (N, Lk, heads, d), got (40, 3, 24)",
        ),
        "k_of_other_heads": (
            {"k": lambda k: k[:, :, 1:]},
            ValueError,
            "reduced_kv_attention: k must be (N, Lk, heads, d) = (2, 40, 3, 24), "
            "got (2, 40, 2, 24)",
        ),
        "v_of_other_length": (
            {"v": lambda v: v[:, 1:]},
            ValueError,
            "reduced_kv_attention: v must be (N, Lk, heads, d) = (2, 40, 3, 24), "
            "got (2, 39, 3, 24)",
        ),
        "v_is_none": (
            {"v": None},
            TypeError,
            "reduced_kv_attention: v must be a tensor, got NoneType",
        ),
        "v_of_another_dtype": (
            {"v": lambda v: v.half()},
            TypeError,
            "reduced_kv_attention: v must have the dtype of the first argument, torch.float32, "
            "got torch.float16",
        ),
        "k_elsewhere": (
            {"k": lambda k: k.to("meta")},
            ValueError,
            "reduced_kv_attention: k must be on the device of the first argument, cpu, got meta",
        ),
        "no_key": (
            {"k": lambda k: k[:, :0], "v": lambda v: v[:, :0]},
            ValueError,
            "reduced_kv_attention: k must hold at least one key, got Lk = 0",
        ),
        "no_width": (
            {"q": lambda q: q[..., :0]},
            ValueError,
            "reduced_kv_attention: the head width d must be 1 to 256, got q (2, 29, 3, 0)",
        ),
        "too_wide": (
            {name: (lambda t: t.repeat(1, 1, 1, 11)) for name in "qkv"},
            ValueError,
            "reduced_kv_attention: the head width d must be 1 to 256, got q (2, 29, 3, 264)",
        ),
        "scale_is_a_word": (
            {"scale": "d"},
            TypeError,
            "reduced_kv_attention: scale must be a number or None, got str",
        ),
    }

    @staticmethod
    def build(
        n: int = 2,
        queries: int = 29,
        keys: int = 40,
        heads: int = 3,
        d: int = 24,
        scale: float | None = None,
    ) -> tuple[dict[str, Tensor | None], dict[str, Any]]:
        tensors = {
            "q": torch.randn(n, queries, heads, d, dtype=torch.float64),
            "k": torch.randn(n, keys, heads, d, dtype=torch.float64),
            "v": torch.randn(n, keys, heads, d, dtype=torch.float64),
        }
        return tensors, {"scale": scale}

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "permuted", "every_second"])
    def test_memory_format_is_kept(self, backend: str, device: str, layout: str, few: str) -> None:
        """The result is contiguous whatever the arguments are, ready for the next Linear layer."""
        call = self.call(few, torch.float32, device).map(LAYOUTS[layout], self.activations)
        (out,) = self.runnable(call, backend)(backend=backend)
        assert out.is_contiguous()

    def test_changed_argument_is_noticed(self, backend: str, device: str, few: str) -> None:
        """The kernels raise; the reference saves copies, so its gradients are the old values'."""
        if backend != "reference":
            super().test_changed_argument_is_noticed(backend, device, few)
            return
        call = self.call(few, torch.float32, device)
        expected = results(call, backend=backend)["grad_q"]
        q = call.present["q"].clone().requires_grad_()
        changed = q * 1
        (out,) = call.with_tensors(q=changed)(backend=backend)
        with torch.no_grad():
            changed.add_(1)
        (found,) = torch.autograd.grad(out, q, output_gradients((out,)))
        assert torch.equal(found, expected)

    def test_heads_of_one_linear_layer(self, backend: str, device: str) -> None:
        """k and v as views of one (N, Lk, 2, heads, d) tensor, as a kv layer leaves them."""
        call = self.runnable(self.call("plain", torch.float32, device), backend)
        both = torch.stack([call.present["k"], call.present["v"]], 2)
        views = call.with_tensors(k=both[:, :, 0], v=both[:, :, 1])
        got, expected = results(views, backend=backend), results(call, backend=backend)
        assert all(torch.equal(got[name], expected[name]) for name in expected)

    # Triton's interpreter computes with NumPy, which warns of NaN and infinity.
    @pytest.mark.filterwarnings("ignore:invalid value encountered")
    @pytest.mark.parametrize("size", ["plain", "in_parts"])
    @pytest.mark.parametrize("name", ["q", "k", "v"])
    def test_non_finite_values(self, backend: str, device: str, name: str, size: str) -> None:
        """A NaN spoils the rows it takes part in, and no other."""
        call = self.runnable(self.call(size, torch.float32, device), backend)
        spoilt = call.present[name].clone()
        spoilt[1, 5, 2, 7] = float("nan")
        out = call.with_tensors(**{name: spoilt})(backend=backend)[0]
        clean = call(backend=backend)[0]
        nan = {"q": (1, 5, 2), "k": (1, slice(None), 2), "v": (1, slice(None), 2, 7)}[name]
        expected = torch.zeros_like(out, dtype=torch.bool)
        expected[nan] = True
        assert torch.equal(out.isnan(), expected)
        assert torch.equal(out[~expected], clean[~expected])

    @pytest.mark.filterwarnings("ignore:invalid value encountered")
    def test_minus_infinite_scores(self, backend: str, device: str, dtype: torch.dtype) -> None:
        """Keys whose score is -inf get no weight, also where they fill the first block of keys."""
        call = self.runnable(
            self.call({"keys": 600, "d": 4, "queries": 30}, dtype, device), backend
        )
        q = call.present["q"].abs() + 0.1
        k, v = call.present["k"].clone(), call.present["v"]
        k[:, :300] = float("-inf")
        out = ops.reduced_kv_attention(q, k, v, backend=backend)
        rest = ops.reduced_kv_attention(q, k[:, 300:], v[:, 300:], backend=backend)
        torch.testing.assert_close(out, rest, rtol=0, atol=8 * torch.finfo(dtype).eps)

    def test_large_scores(self, backend: str, device: str, dtype: torch.dtype) -> None:
        """One dominant key: its value, not an overflow."""
        call = self.runnable(self.call("plain", dtype, device), backend)
        q = torch.full_like(call.present["q"], 30)
        k = torch.full_like(call.present["k"], -30)
        k[:, 17] = 30
        out = ops.reduced_kv_attention(q, k, call.present["v"], backend=backend)
        assert torch.equal(out, call.present["v"][:, 17:18].expand_as(out))

    def test_equal_keys_give_the_mean(self, backend: str, device: str) -> None:
        call = self.runnable(self.call("plain", torch.float32, device), backend)
        k = call.present["k"][:, :1].expand(-1, 40, -1, -1)
        out = ops.reduced_kv_attention(call.present["q"], k, call.present["v"], backend=backend)
        mean = call.present["v"].mean(1, keepdim=True)
        torch.testing.assert_close(out, mean.expand_as(out), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scale", [None, 0.25])
def test_reference_is_the_formula(scale: float | None) -> None:
    tensors, _ = TestReducedKvAttention.build(2, 5, 4, 2, 3)
    q, k, v = (tensors[name] for name in "qkv")
    expected = torch.empty_like(q)
    factor = 3**-0.5 if scale is None else scale
    for n in range(2):
        for head in range(2):
            for i in range(5):
                weights = torch.exp(factor * (k[n, :, head] @ q[n, i, head]))
                expected[n, i, head] = weights @ v[n, :, head] / weights.sum()
    out = ops.reduced_kv_attention(q, k, v, scale=scale, backend="reference")
    torch.testing.assert_close(out, expected)


def test_automatic_choice_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no kernel can run, PyTorch's own attention does; by name the definition runs."""
    called = []
    sdpa = F.scaled_dot_product_attention

    def recorded(*args: Any, **kwargs: Any) -> Tensor:
        called.append(kwargs)
        return sdpa(*args, **kwargs)

    monkeypatch.setattr(F, "scaled_dot_product_attention", recorded)
    q = torch.randn(1, 4, 2, 8, device="meta")
    answers = explain(ops.reduced_kv_attention, q, q, q)
    assert answers["reference"] == "yes (chosen, by PyTorch's scaled_dot_product_attention)"
    assert ops.reduced_kv_attention(q, q, q).shape == q.shape
    assert called == [{"scale": 8**-0.5}]
    ops.reduced_kv_attention(q, q, q, backend="reference")
    with use_backend("reference"):
        ops.reduced_kv_attention(q, q, q)
    assert len(called) == 1


@pytest.mark.parametrize(
    ("triton", "keys", "chosen"),
    [(True, 256, "triton"), (False, 256, "cuda"), (True, 257, "reference")],
)
def test_automatic_choice_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, triton: bool, keys: int, chosen: str
) -> None:
    """Triton, and where it is absent the CUDA kernel; for many keys PyTorch's attention."""
    monkeypatch.setattr(_native, "why_not_cuda_built", lambda: None)
    monkeypatch.setattr(_triton, "interpreted", lambda: False)
    monkeypatch.setattr(_triton, "_why_not_runnable", lambda: None if triton else "not there")
    with FakeTensorMode():
        q = torch.empty(1, 4, 2, 8, device="cuda")
        k = torch.empty(1, keys, 2, 8, device="cuda")
    answers = explain(ops.reduced_kv_attention, q, k, k)
    assert answers["cuda"].startswith("yes")
    assert [name for name, answer in answers.items() if "chosen" in answer] == [chosen]


needs_native = pytest.mark.skipif(why_not_loaded() is not None, reason=str(why_not_loaded()))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("queries", "keys", "d"),
    [(1, 1, 1), (15, 97, 5), (33, 95, 20), (64, 192, 24), (130, 193, 7), (449, 100, 33)],
)
def test_uneven_tiles(queries: int, keys: int, d: int, dtype: torch.dtype) -> None:
    """Tiles of 1 to 4 vectors of queries, blocks of uneven numbers of keys, heads of any width."""
    q = torch.randn(2, queries, 2, d).to(dtype)
    k, v = (torch.randn(2, keys, 2, d).to(dtype) for _ in range(2))
    scale = -0.7 / d**0.5
    out = ops.reduced_kv_attention(q, k, v, scale=scale, backend="cpu")
    scores = torch.einsum("nqhd,nkhd->nhqk", q.double(), k.double()) * scale
    expected = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v.double())
    near = {torch.float16: 3e-3, torch.float32: 3e-6, torch.float64: 1e-13}[dtype]
    torch.testing.assert_close(out.double(), expected, rtol=near, atol=near)


@needs_native
@pytest.mark.parametrize("scale", [1.0, -1.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_near_the_largest_number(dtype: torch.dtype, scale: float) -> None:
    """The CPU kernel subtracts the largest score before it scales any."""
    q, k = torch.full((1, 1, 1, 4), 1e19, dtype=dtype), torch.full((1, 3, 1, 4), 8e18, dtype=dtype)
    v = torch.ones((1, 3, 1, 4), dtype=dtype)
    out = ops.reduced_kv_attention(q, k, v, scale=scale, backend="cpu")
    assert torch.equal(out, torch.ones_like(out))


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_key_blocks_agree_on_weights(dtype: torch.dtype) -> None:
    """Scores of millions whose difference is 1, in two blocks of the CPU kernel's keys."""
    q = torch.tensor([2048.0, 1.0], dtype=dtype).view(1, 1, 1, 2)
    k = torch.tensor([2048.0, 4.0], dtype=dtype).repeat(1, 512, 1, 1).view(1, 512, 1, 2)
    k[:, 256:, :, 1] = 5
    v = torch.zeros(1, 512, 1, 2, dtype=dtype)
    v[:, 256:] = 1
    out = ops.reduced_kv_attention(q, k, v, scale=1.0, backend="cpu").float()
    expected = torch.full_like(out, torch.tensor(1.0).sigmoid().item())
    torch.testing.assert_close(out, expected, rtol=0, atol=4e-3)


@needs_native
@pytest.mark.parametrize(
    ("name", "column", "value"),
    [
        ("q", slice(None), float("inf")),
        ("k", slice(None), float("-inf")),
        ("k", slice(None), float("inf")),
        ("k", slice(None), -3e38),
        ("k", 5, -1e30),
        ("v", 5, float("-inf")),
        ("v", 5, 3e38),
    ],
)
def test_infinite_and_huge_numbers(name: str, column: int | slice, value: float) -> None:
    """They give what float64 gives, in two blocks of the CPU kernel's keys and two tasks."""
    tensors = {"q": torch.rand(1, 800, 1, 32) + 0.1, "k": torch.rand(1, 500, 1, 32) + 0.1}
    tensors["v"] = torch.randn(1, 500, 1, 32)
    tensors["q"][:, 7] *= 1e12
    tensors[name][:, 450, :, column] = value
    out = ops.reduced_kv_attention(*tensors.values(), backend="cpu")
    wide = ops.reduced_kv_attention(*(t.double() for t in tensors.values()), backend="cpu")
    rows = torch.arange(800) != 7  # whose largest score is rounded to more than a weight's width
    expected = wide.float()
    torch.testing.assert_close(
        out[:, rows], expected[:, rows], rtol=1e-5, atol=1e-5, equal_nan=True
    )
    assert torch.equal(out.isnan(), expected.isnan())


@needs_native
def test_long_sums_round_as_short_ones() -> None:
    """Sums of one sign over many keys are as good as float32 with sums of blocks."""
    q, k = torch.randn(1, 70, 1, 32), torch.randn(1, 6000, 1, 32)
    v = torch.rand(1, 6000, 1, 32) + 1
    out = ops.reduced_kv_attention(q, k, v, backend="cpu")
    wide = ops.reduced_kv_attention(q.double(), k.double(), v.double(), backend="cpu")
    worst = ((out - wide) / wide).abs().max().item()
    assert worst < 8 * torch.finfo(torch.float32).eps


@needs_native
@pytest.mark.parametrize(("keys", "d"), [(70, 20), (200, 32), (900, 33), (500, 80)])
@pytest.mark.parametrize("scale", [0.25, -0.25])
def test_scores_that_rise_with_the_keys(keys: int, d: int, scale: float) -> None:
    """What the first keys' weights are worth beside later ones', in rows where those are larger."""
    q, k = torch.rand(1, 75, 1, d) + 0.1, torch.randn(1, keys, 1, d) * 0.1
    k += torch.linspace(-400 / d, 400 / d, keys).view(1, keys, 1, 1) * (1 if scale > 0 else -1)
    v = torch.randn(1, keys, 1, d)
    q[:, 10:20] *= -1  # where they fall
    q[:, 40:] *= 1e-3  # where they nearly stay
    out, lse = torch.empty_like(q), torch.empty(1, 1, 75)
    native_cpu.forward(q, k, v, scale, out, lse)
    scores = scale * torch.einsum("nqhd,nkhd->nhqk", q.double(), k.double())
    wide = torch.einsum("nhqk,nkhd->nqhd", scores.softmax(-1), v.double())
    own = ops.reduced_kv_attention(q, k, v, scale=scale, backend="reference")
    allowed = 2 * (own - wide).abs().max() + 4 * torch.finfo(torch.float32).eps * wide.abs().max()
    assert (out - wide).abs().max() <= allowed
    torch.testing.assert_close(lse.double(), scores.logsumexp(-1), rtol=1e-6, atol=1e-5)


@needs_native
@pytest.mark.parametrize("keys", [200, 900])
def test_rows_whose_scores_rise_change_no_other(keys: int) -> None:
    """What a row's later scores do to its sums is the row's own matter."""
    q, k, v = (torch.randn(1, length, 1, 24) for length in (70, keys, keys))
    k[:, 150, :, 3] = 40.0
    q[..., 3] = 0
    calm = ops.reduced_kv_attention(q, k, v, backend="cpu")
    q[:, 5, :, 3] = 10.0
    q[:, 9, :, 3] = torch.nan
    out = ops.reduced_kv_attention(q, k, v, backend="cpu")
    others = torch.tensor([row not in (5, 9) for row in range(70)])
    assert torch.equal(out[:, others], calm[:, others])
    torch.testing.assert_close(out[:, 5], v[:, 150])
    assert out[:, 9].isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_without_a_log_sum_exp_the_bits_are_the_same(dtype: torch.dtype) -> None:
    if why_not_loaded() is not None:
        pytest.skip(str(why_not_loaded()))
    q, k, v = (torch.randn(2, length, 3, 20).to(dtype) for length in (70, 401, 401))
    with_it, without = torch.empty_like(q), torch.full_like(q, torch.nan)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    native_cpu.forward(q, k, v, 0.3, with_it, torch.empty(2, 3, 70, dtype=wide))
    native_cpu.forward(q, k, v, 0.3, without, None)
    assert torch.equal(with_it, without)


@pytest.mark.parametrize("isa", CPU_ISAS)
def test_every_instruction_set(isa: str) -> None:
    """This file's values and gradients again, on the kernels of each instruction set."""
    reason = why_not_loaded()
    if reason is not None:
        pytest.skip(reason)
    if CPU_ISAS.index(isa) > core().cpu_isa:
        pytest.skip(f"this processor's kernels go up to {CPU_ISAS[core().cpu_isa]}")
    if CPU_ISAS.index(isa) == core().cpu_isa:
        pytest.skip("the tests above ran on it")
    environment = {**os.environ, "CLIPWEATHER_CPU_ISA": isa}
    tests = "test_values_and_gradients or test_non_finite_values or test_thread_count"
    command = [sys.executable, "-m", "pytest", "-q", "-x", __file__, "--backend=cpu", "-k", tests]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout
