"""Recorded passes: they give what computing gives, in memory that takes turns, and step aside."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from clipweather_fast.models import RestorationNetwork, _frozen, _recordings
from clipweather_fast.models._arena import Arena
from clipweather_fast.models._recordings import (
    KEPT,
    PASSES_BEFORE,
    Compute,
    Recordings,
    Unwritten,
)
from clipweather_fast.modules import SARFFN, EfficientAttention
from clipweather_fast.modules._joint import in_step
from small_networks import photograph, prior_of, small

pytestmark = pytest.mark.skipif(
    _frozen._why_not(torch.float32) is not None, reason=str(_frozen._why_not(torch.float32))
)
needs_bfloat16 = pytest.mark.skipif(
    _frozen._why_not(torch.bfloat16) is not None, reason=str(_frozen._why_not(torch.bfloat16))
)


@pytest.fixture
def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many passes were computed instead of replayed, in its only element."""
    count = [0]
    original = Recordings.__call__

    def counting(
        self: Recordings, compute: Compute, *inputs: Tensor | None, given: Any = None
    ) -> Tensor:
        def counted(*inputs: Tensor | None) -> Tensor:
            count[0] += 1
            return compute(*inputs)

        return original(self, counted, *inputs, given=given)

    monkeypatch.setattr(Recordings, "__call__", counting)
    return count


@torch.no_grad()
def restored(network: RestorationNetwork, image: Tensor, dtype: torch.dtype) -> Tensor:
    prior = prior_of(network, image.shape[0])
    with torch.autocast("cpu", dtype=dtype, enabled=dtype == torch.bfloat16):
        return network(image, prior)


def without(network: RestorationNetwork, image: Tensor, dtype: torch.dtype) -> Tensor:
    """Computed, by the same form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_recordings, "MOST_VALUES", 0)
        return restored(network, image, dtype)


#: Passes that are computed until one is replayed: before, recorded, and beside the first replay.
WITH_A_RECORDING = PASSES_BEFORE + 2
VARIANTS: dict[str, dict[str, Any]] = {
    "paper": {},
    "gated detail": {"detail_channels": 5, "residual_output": "gated"},
    "no sar": {"num_kernels": 0},
    "sequential": {"sar_arrangement": "sequential", "sar_sign": -1},
    "concatenated": {"prior_fuse": "concat"},
    "no prior": {"prior_encoder": "none"},
}


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)]
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_replay_is_the_pass(variant: str, dtype: torch.dtype, computed: list[int]) -> None:
    network = small(**VARIANTS[variant])
    images = [photograph(72, 90, n=2) ** (1 + i / 4) for i in range(PASSES_BEFORE + 4)]
    got = [restored(network, image, dtype) for image in images]
    assert computed[0] == WITH_A_RECORDING
    for one, image in zip(got, images, strict=True):
        expected = without(network, image, dtype)
        assert one.dtype == expected.dtype
        assert one.stride() == expected.stride()
        assert torch.equal(one, expected)
        assert not one.is_inference()


@pytest.mark.parametrize("size", [(64, 64), (96, 130)])
def test_transweathers_too(size: tuple[int, int], computed: list[int]) -> None:
    network = small("TransWeather")
    for i in range(PASSES_BEFORE + 3):
        image = photograph(*size) ** (1 + i / 4)
        assert torch.equal(
            restored(network, image, torch.float32), without(network, image, torch.float32)
        )
    assert computed[0] == 2 * PASSES_BEFORE + 5


def test_results_are_the_callers_own() -> None:
    network, image = small(), photograph(64, 64)
    for _ in range(PASSES_BEFORE + 1):
        restored(network, image, torch.float32)
    one = restored(network, image, torch.float32)
    kept = one.clone()
    restored(network, 1 - image, torch.float32)
    assert torch.equal(one, kept)
    one.add_(1)
    assert torch.equal(restored(network, image, torch.float32), kept)


def test_what_is_no_number_passes(computed: list[int]) -> None:
    network, image = small(), photograph(64, 64)
    image[0, 1, 3, 5] = torch.nan
    for _ in range(PASSES_BEFORE + 3):
        got = restored(network, image, torch.float32)
    assert computed[0] == WITH_A_RECORDING
    expected = without(network, image, torch.float32)
    assert got.isnan().any()
    assert torch.allclose(got, expected, rtol=0, atol=0, equal_nan=True)


def test_changed_weights_are_seen() -> None:
    network, image = small(), photograph(64, 64)
    for _ in range(PASSES_BEFORE + 2):
        before = restored(network, image, torch.float32)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(1.1)
    after = restored(network, image, torch.float32)
    assert not torch.equal(after, before)
    assert torch.equal(after, without(network, image, torch.float32))


def test_threads_take_turns() -> None:
    """Who finds the memory in use computes."""
    network = small()
    images = [photograph(64, 64) ** (1 + i / 8) for i in range(24)]
    expected = [without(network, image, torch.float32) for image in images]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda image: restored(network, image, torch.float32), images))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    (form,) = _frozen._forms.of(network).values()
    assert form.recordings._kept


def passes(recordings: Recordings, compute: Compute, *inputs: Tensor) -> int:
    """How many of ten passes were computed."""
    count = 0

    def counted(*inputs: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return compute(*inputs)

    for _ in range(10):
        assert torch.equal(recordings(counted, *inputs), compute(*inputs))
    return count


def test_only_what_is_recorded_whole_is_replayed() -> None:
    x = torch.rand(4, 8)
    assert passes(Recordings(), lambda x: (x * 2).relu() @ x.mT, x) == WITH_A_RECORDING
    # Python sees a number: the attempt is given up and the pass is computed.
    assert passes(Recordings(), lambda x: x * float(x.max()), x) == 11


def test_an_input_may_be_written_where_it_is_read() -> None:
    recordings, shape = Recordings(), (2, 3, 4, 5)
    places = set()
    for i in range(10):
        value = torch.rand(shape)

        def write(out: Tensor, value: Tensor = value) -> None:
            places.add(out.data_ptr())
            out.copy_(value)

        got = recordings(lambda x, y: x * 2 + y, Unwritten(shape, write), value)
        assert torch.equal(got, value * 2 + value), i
    (recording,) = recordings._kept.values()
    own = recording._inputs[0]
    assert own is not None
    assert own.data_ptr() in places
    other = Unwritten((1, 3, 4, 5), lambda out: out.fill_(1))
    assert torch.equal(recordings(torch.neg, other), -torch.ones(1, 3, 4, 5))


def test_it_steps_aside() -> None:
    x = torch.rand(4, 8)
    recordings = Recordings()
    assert passes(recordings, torch.relu, x) == WITH_A_RECORDING
    assert passes(recordings, torch.relu, torch.rand(0, 8)) == 10
    large = torch.zeros(_recordings.MOST_VALUES + 1)
    assert passes(recordings, torch.relu, large) == 10
    with FlopCounterMode(display=False):
        assert passes(recordings, torch.relu, x) == 10

    class Joined:
        def keys(self, layer: object, tokens: Tensor, height: int, width: int) -> Tensor:
            return tokens

        def rims(self, layer: object, images: tuple[Tensor, ...]) -> None:
            pass

    with in_step(Joined()):
        assert passes(recordings, torch.relu, x) == 10
    assert passes(recordings, torch.relu, x) == 0


def test_sizes_layouts_threads_and_what_else_is_given_are_told_apart() -> None:
    recordings = Recordings()
    flat, tall = torch.rand(4, 8), torch.rand(8, 4).mT
    assert passes(recordings, torch.relu, flat) == WITH_A_RECORDING
    assert passes(recordings, torch.relu, tall) == WITH_A_RECORDING
    assert passes(recordings, torch.relu, flat.double()) == WITH_A_RECORDING
    assert torch.equal(recordings(torch.neg, flat, given="another"), -flat)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        assert passes(recordings, torch.relu, flat) == WITH_A_RECORDING
    finally:
        torch.set_num_threads(threads)
    assert passes(recordings, torch.relu, flat) == 0


def test_sizes_that_put_one_another_out_are_recorded_ever_less_often() -> None:
    recordings = Recordings()
    sizes = [torch.rand(4, n) for n in range(1, KEPT + 2)]
    count = 0

    def counted(x: Tensor) -> Tensor:
        nonlocal count
        count += 1
        return x * 2

    for _ in range(100):
        for x in sizes:
            assert torch.equal(recordings(counted, x), x * 2)
    # Who was put out waits, and leaves the others their places meanwhile.
    assert count < 40 * len(sizes)


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = torch.rand(4, 8), torch.rand(4, 9)
    monkeypatch.setattr(_recordings, "KEPT_BYTES", 5 << 20)  # room for one recording
    recordings = Recordings()
    assert passes(recordings, torch.relu, x) == WITH_A_RECORDING
    assert passes(recordings, torch.relu, y) == WITH_A_RECORDING
    assert len(recordings._kept) == 1
    monkeypatch.setattr(_recordings, "KEPT_BYTES", 1 << 20)
    recordings = Recordings()
    assert passes(recordings, torch.relu, x) == 10
    assert not recordings._kept


def test_long_passes_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_recordings, "LONGEST", 0.0)
    assert passes(Recordings(), torch.relu, torch.rand(4, 8)) == 10


def test_an_error_is_that_of_computing() -> None:
    recordings, x = Recordings(), torch.rand(4, 8)
    fails = False

    def compute(x: Tensor) -> Tensor:
        if fails:
            raise MemoryError("of computing")
        return x * 2

    for _ in range(PASSES_BEFORE):
        recordings(compute, x)
    fails = True
    with pytest.raises(MemoryError, match="of computing"):
        recordings(compute, x)
    fails = False
    assert passes(recordings, torch.relu, x) == 10  # a size has one attempt
    assert passes(Recordings(), torch.relu, x) == WITH_A_RECORDING


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: torch.empty_strided((4, 8), (16, 1)).copy_(x) * 1,
        lambda x: torch.add(x, 1, out=torch.empty(0)),
        lambda x: torch.complex(x, x).conj().imag * 1,
        lambda x: x * x.tolist()[0][0],
        lambda x: x * float(x.numpy().max() + x.numpy()[0, 0]),
    ],
)
def test_what_cannot_be_replayed_is_computed(compute: Compute) -> None:
    recordings, x = Recordings(), torch.rand(4, 8)
    for i in range(10):
        image = x + i
        assert torch.equal(recordings(compute, image), compute(image))
    assert not recordings._kept


def test_settings_that_modules_hold_count() -> None:
    for variant in ({}, {"sar_arrangement": "sequential", "sar_sign": -1}):
        network, image = small(**variant), photograph(64, 64)
        before = [restored(network, image, torch.float32) for _ in range(PASSES_BEFORE + 2)][-1]
        for module in network.modules():
            if isinstance(module, SARFFN) and variant:
                module.sign = 1
            elif isinstance(module, EfficientAttention):
                module.scale *= 3
        after = restored(network, image, torch.float32)
        assert not torch.equal(after, before)
        assert torch.equal(after, without(network, image, torch.float32))


def test_no_compiler_is_loaded() -> None:
    script = (
        "import sys, torch\n"
        "from clipweather_fast.models._recordings import Recordings\n"
        "recordings, x = Recordings(), torch.rand(3)\n"
        "for _ in range(6):\n"
        "    recordings(torch.relu, x)\n"
        "assert recordings._kept\n"
        "assert 'torch._dynamo' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-P", "-c", script], check=True, timeout=100)


def test_memory_takes_turns() -> None:
    arena = Arena()
    kept = arena.like(torch.empty(2, 3, 4, 5, memory_format=torch.channels_last)).fill_(7)
    assert kept.stride() == (60, 1, 15, 3)
    places = set()
    for size in (1000, 900, 1000, 64):
        buffer = arena.like(torch.empty(size, dtype=torch.float64))
        places.add(buffer.data_ptr())
        assert buffer.data_ptr() % 64 == 0
        view = buffer[1:]
        del buffer
        assert arena.like(torch.empty(3)).data_ptr() not in places  # a view is left
        del view
    assert len(places) == 1
    assert bool((kept == 7).all())
    whole = arena.bytes
    several = [arena.like(torch.empty(1 << 18)) for _ in range(9)]
    assert arena.bytes > whole
    assert len({t.data_ptr() for t in several}) == 9
    most = arena.bytes
    del several
    again = [arena.like(torch.empty(1 << 17)) for _ in range(18)]
    assert arena.bytes == most
    del again


def test_an_unowned_view_keeps_nothing() -> None:
    arena = Arena()
    tensor = arena.like(torch.empty(4, 6)).copy_(torch.arange(24.0).view(4, 6))
    part = arena.unowned(tensor[1:, ::2])
    assert torch.equal(part, tensor[1:, ::2])
    assert part.data_ptr() == tensor[1:, ::2].data_ptr()
    place = tensor.data_ptr()
    del tensor
    assert arena.like(torch.empty(4, 6)).data_ptr() == place
    foreign = torch.rand(3)
    assert arena.unowned(foreign) is foreign
    arena.spoil()
    assert bool(part.isnan().all())
