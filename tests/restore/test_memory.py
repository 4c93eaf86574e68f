"""What the memory estimate says is what a pass takes, and tiles bound it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from clipweather_fast.restore import Restorer, memory
from clipweather_fast.restore.footprint import fake_trace
from clipweather_fast.restore.memory import Estimate, estimate
from known_networks import tiny_network

CPU = torch.device("cpu")
MIB = 1 << 20

PROBE = """
import json, sys
import numpy as np, torch
sys.path.insert(0, {tests!r})
from known_networks import tiny_network
from clipweather_fast import Restorer

class Wide(torch.nn.Module):
    size_multiple = 16
    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.Conv2d(3, 32, 1), torch.nn.Conv2d(32, 3, 1)
    def forward(self, image):
        return self.last(self.first(image))

def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024

torch.set_num_threads(1)
network = Wide() if {form!r} == "wide" else tiny_network(prior_encoder="none")
if {form!r} == "modules":  # a hook keeps a network from its frozen form
    network.decoder.register_forward_pre_hook(lambda module, arguments: None)
restorer = Restorer(network, dtype={dtype!r}, tile={tile})
picture = np.zeros({shape}, np.uint8)
picture[:] = 100
loaded = set(sys.modules)
estimate = restorer._engine._estimate(torch.{dtype})
slow = {form!r} != "wide" and "torch._dynamo" in set(sys.modules) - loaded
need = estimate.bytes(picture.shape[0] * picture.shape[1])
restorer(picture[:64, :64])
before = peak()
restorer(picture)
rise = peak() - before
print(json.dumps({{"rise": rise, "need": need, "picture": picture.nbytes, "slow": slow}}))
"""


def measured(
    form: str, dtype: str, tile: int | None, shape: tuple[int, int, int]
) -> dict[str, int]:
    """By how much a fresh process's memory rises when it restores a picture, and the estimate."""
    program = PROBE.format(
        tests=str(Path(__file__).parents[1]), form=form, dtype=dtype, tile=tile, shape=shape
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, int] = json.loads(done.stdout)
    return found


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="the process's peak memory is read from /proc"
)


@needs_proc
@pytest.mark.parametrize(
    ("form", "dtype"),
    [
        ("wide", "float32"),
        ("frozen", "float32"),
        ("frozen", "bfloat16"),
        ("modules", "float32"),
    ],
)
def test_the_estimate_is_what_a_pass_takes(form: str, dtype: str) -> None:
    found = measured(form, dtype, None, (1100, 1100, 3))
    # The result, 3 bytes per pixel, is not part of the pass.
    rise = found["rise"] - found["picture"]
    assert rise <= found["need"] <= 2 * rise
    # Fake tensors bring PyTorch's compiler with them, which takes longer than many a picture.
    assert not found["slow"]


@needs_proc
def test_memory_is_bounded_by_the_tile_and_not_by_the_picture() -> None:
    found = measured("wide", "float32", 256, (3000, 2600, 3))
    # Beside the result: a row of tiles in float32 and its overlap, and what a tile takes.
    row = 256 * 2600 * 12
    assert found["rise"] <= found["picture"] + 2 * row + 64 * MIB
    # Whole, it takes many times as much.
    assert found["need"] >= 8 * found["rise"]


class Scores(nn.Module):
    """Attention that stores its scores: patches of 16 × 16, each against each."""

    def forward(self, image: Tensor) -> Tensor:
        tokens = nn.functional.avg_pool2d(image, 16).flatten(2).transpose(1, 2)
        scores = tokens @ tokens.transpose(1, 2)
        return image + scores.softmax(-1).sum()


def test_attention_that_stores_its_scores_is_seen() -> None:
    found = estimate(Scores(), CPU)
    # Two matrices of (pixels / 256)² at once: the scores and their softmax.
    assert found.per_pixel_squared == pytest.approx(2 * 4 / 256**2, rel=0.2)


def test_the_count_holds_between_and_beyond_the_trials() -> None:
    network = tiny_network(prior_encoder="none")
    found = estimate(network, CPU)
    for side in (256, 4096):
        counted = fake_trace(network, side, side, CPU).peak
        expected = memory.LIBRARIES + memory.MARGIN * counted
        assert found.bytes(side * side) == pytest.approx(expected, rel=0.1)


class Stubborn(nn.Module):
    """Leaves PyTorch, where fake tensors cannot follow."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.from_numpy(image.numpy().copy())


def test_a_network_that_cannot_be_counted_is_taken_for_a_large_one() -> None:
    assert estimate(Stubborn(), CPU) == Estimate(memory.UNKNOWN_BYTES_PER_PIXEL)


class Lazy(nn.Module):
    """Builds its prior encoder when it is first used."""

    def __init__(self) -> None:
        super().__init__()
        self.built: list[nn.Module] = []

    def encode_prior(self, image: Tensor) -> Tensor:
        if not self.built:
            self.built.append(nn.Linear(3, 3))
        prior: Tensor = self.built[0](image.mean((2, 3)))
        return prior

    def forward(self, image: Tensor, prior: Tensor | None = None) -> Tensor:
        assert prior is not None
        return image + prior[..., None, None]


def test_nothing_is_built_of_tensors_without_memory() -> None:
    network = Lazy()
    Restorer(network)._engine._estimate(torch.float32)
    assert type(network.built[0].weight.data) is Tensor


@given(
    a=st.floats(1, 5000),
    b=st.one_of(st.just(0.0), st.floats(1e-9, 1e-2)),
    fixed=st.one_of(st.just(0.0), st.floats(1, 1e8)),
    limit=st.integers(1 << 20, 1 << 40),
    step=st.sampled_from([1, 16, 64]),
)
def test_the_side_is_the_largest_that_fits(
    a: float, b: float, fixed: float, limit: int, step: int
) -> None:
    found = Estimate(a, b, fixed=fixed)
    side = found.side(limit, step)
    assert side % step == 0
    assert side == step or found.bytes(side * side) <= limit
    assert found.bytes((side + step) ** 2) >= limit * (1 - 1e-9)


def test_what_is_free_is_the_least_of_machine_and_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    1000 kB\n",
        "/sys/fs/cgroup/memory.max": "max\n",
    }

    class Fake:
        def __init__(self, path: str) -> None:
            self.path = path

        def read_text(self) -> str:
            if self.path not in files:
                raise FileNotFoundError(self.path)
            return files[self.path]

    monkeypatch.setattr(memory, "Path", Fake)
    assert memory.available_bytes(CPU) == int(0.6 * 1000 * 1024)
    files["/sys/fs/cgroup/memory.max"] = "600000"
    files["/sys/fs/cgroup/memory.current"] = "100000"
    assert memory.available_bytes(CPU) == int(0.6 * 500000)
    files.clear()
    assert memory.available_bytes(CPU) is None
    assert memory.available_bytes(torch.device("meta")) is None


def test_what_is_free_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    assert memory.available_bytes(torch.device("cuda")) == int(0.85 * 1200)
