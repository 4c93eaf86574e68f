"""The demonstration behind ``clipweather demo``: the speed-up on a real photograph's features.

A photograph is cut into the tokens of a seeded, untrained first stage; the blocks of the networks
run on them once with the fused operators and once in plain PyTorch, in turn, so that both meet the
same machine. Before anything is timed, outputs and gradients of the two must agree.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib.util
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.models import accelerate
from clipweather_fast.modules import SARFFN, EfficientAttention

__all__ = ["Demonstration", "Measurement", "run"]

DIM = 64
#: Rounds are cut short after this many seconds per row of the table.
SECONDS_PER_ROW = 1.0
MOST_ROUNDS = 50
#: Largest difference allowed, relative to the largest value (float32 sums in another order).
TOLERANCE = 1e-4

Computation = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Measurement:
    """Median seconds of one block, in plain PyTorch and with the fused operators."""

    name: str
    plain: float
    fused: float
    rounds: int

    @property
    def speed_up(self) -> float:
        """How many times faster the fused one is."""
        return self.plain / self.fused


@dataclass(frozen=True)
class Demonstration:
    """What was run, on what, and how long it took. ``str()`` gives the table."""

    picture: str
    width: int
    height: int
    tokens: int
    device: str
    threads: int
    backends: tuple[str, ...]
    largest_difference: float
    measurements: tuple[Measurement, ...]

    def __str__(self) -> str:
        threads = f"{self.threads} thread" + ("s" if self.threads > 1 else "")
        lines = [
            f"{self.picture}, {self.width} x {self.height}: {self.tokens} tokens, {DIM} channels",
            f"float32, {self.device}, {threads}, backend {' and '.join(self.backends)}",
            "",
            f"{'':<46}{'plain PyTorch':>15}{'fused':>12}{'faster':>10}",
        ]
        lines += [
            f"{m.name:<46}{m.plain * 1e3:>12.2f} ms{m.fused * 1e3:>9.2f} ms{m.speed_up:>8.1f} x"
            for m in self.measurements
        ]
        lines += [
            "",
            f"Outputs and gradients agree to {self.largest_difference:.0e} of the largest value.",
            f"Medians of up to {MOST_ROUNDS} rounds, one in turn with the other, same allocator.",
        ]
        return "\n".join(lines)


def run(image_path: str | Path | None = None, threads: int | None = None) -> Demonstration:
    """Times the fused blocks against plain PyTorch on a photograph's features.

    It takes under 20 seconds. Memory settings of the C library are changed for the whole process
    (freed memory is kept), for both sides: without it plain PyTorch looks slower than it is.

    Args:
        image_path: any picture Pillow reads; None: ``examples/coffee.jpg``, or a photograph that
            scikit-image or scikit-learn brings.
        threads: of PyTorch and of the kernels, during the run; None: as they are set.

    Raises:
        FileNotFoundError: there is no such picture, or none was given and none was found.
        ValueError: ``threads`` is not positive, or the picture is smaller than 32 × 32.
        RuntimeError: fused and plain results differ.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"demo: threads must be a positive number, got {threads}")
    path = _picture(image_path)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _keep_freed_memory()
    with _threads(threads), torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        picture = _load(path).to(device)
        x, height, width = _tokens(picture)
        measurements, differences = [], []
        for name, fused, plain in _contestants(device):
            sides = [partial(_results, block, x, height, width) for block in (fused, plain)]
            differences.append(_difference(name, sides[0](), sides[1]()))
            for direction, steps in (("forward", _forward), ("forward + backward", _results)):
                pair = [partial(steps, block, x, height, width) for block in (fused, plain)]
                measurements.append(_measure(f"{name}, {direction}", pair[0], pair[1], device))
        return Demonstration(
            picture=path.name,
            width=picture.shape[3],
            height=picture.shape[2],
            tokens=x.shape[1],
            device=torch.cuda.get_device_name() if device.type == "cuda" else "CPU",
            threads=torch.get_num_threads(),
            backends=_backends(x, height, width),
            largest_difference=max(differences),
            measurements=tuple(measurements),
        )


# ---- the contestants ---------------------------------------------------------------------------


class _PlainAttention(nn.Module):
    """PVTv2's attention as one writes it in PyTorch, for accelerate() to find."""

    def __init__(self, dim: int, num_heads: int, sr_ratio: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (dim // num_heads) ** -0.5
        self.q, self.kv, self.proj = (nn.Linear(dim, n) for n in (dim, 2 * dim, dim))
        self.sr = nn.Conv2d(dim, dim, sr_ratio, stride=sr_ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        n, length, dim = x.shape
        image = x.transpose(1, 2).reshape(n, dim, H, W)
        reduced = self.norm(self.sr(image).flatten(2).transpose(1, 2))
        q = self.q(x).reshape(n, length, self.num_heads, -1).transpose(1, 2)
        k, v = self.kv(reduced).reshape(n, -1, 2, self.num_heads, q.shape[3]).unbind(2)
        weights = (q @ k.permute(0, 2, 3, 1) * self.scale).softmax(-1)
        out = (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(n, length, dim)
        projected: Tensor = self.proj(out)
        return projected


class _PlainMlp(nn.Module):
    """PVTv2's feed-forward block as one writes it in PyTorch, for accelerate() to find."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.dwconv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        z = self.fc1(x)
        z = self.dwconv(z.transpose(1, 2).reshape(z.shape[0], -1, H, W))
        y: Tensor = self.fc2(self.act(z).flatten(2).transpose(1, 2))
        return y


class _PlainBlock(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = _PlainAttention(dim, 1, 8)
        self.mlp = _PlainMlp(dim, 8 * dim)

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        x = x + self.attn(self.norm1(x), H, W)
        y: Tensor = x + self.mlp(self.norm2(x), H, W)
        return y


class _OnReference(nn.Module):
    """A block whose operators all take the plain PyTorch backend."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        with ops.use_backend("reference"):
            y: Tensor = self.block(x, H, W)
        return y


def _contestants(device: torch.device) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """(name, fused, plain), with the same parameters."""
    for name, block in (
        ("SARFFN", SARFFN(DIM, 2, 3)),
        ("EfficientAttention", EfficientAttention(DIM, 1, 4)),
    ):
        block.to(device)
        yield name, block, _OnReference(block)
    plain = _PlainBlock(DIM).to(device)
    fused = copy.deepcopy(plain)
    accelerate(fused)
    yield "PVTv2 block by accelerate()", fused, plain


def _forward(block: nn.Module, x: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return (block(x, height, width),)


def _results(block: nn.Module, x: Tensor, height: int, width: int) -> tuple[Tensor, ...]:
    """The output, and the gradients of the tokens and of every parameter."""
    leaf = x.detach().requires_grad_()
    y = block(leaf, height, width)
    return (y.detach(), *torch.autograd.grad(y.square().mean(), [leaf, *block.parameters()]))


def _difference(name: str, fused: tuple[Tensor, ...], plain: tuple[Tensor, ...]) -> float:
    """The largest difference, relative to the largest value of each tensor."""
    worst = 0.0
    for one, other in zip(fused, plain, strict=True):
        scale = max(other.abs().max().item(), torch.finfo(torch.float32).tiny)
        worst = max(worst, (one - other).abs().max().item() / scale)
    if not worst <= TOLERANCE:
        raise RuntimeError(f"demo: {name}: fused and plain results differ by {worst:.1e}")
    return worst


def _backends(x: Tensor, height: int, width: int) -> tuple[str, ...]:
    """Who computed: the backends chosen for the blocks' operators."""
    image = x.transpose(1, 2).view(1, DIM, height, width)
    heads, keys = x.unsqueeze(2), x[:, : x.shape[1] // 16].unsqueeze(2)
    calls = (
        ops.explain(ops.depthwise_conv2d, image, image.new_ones(DIM, 1, 3, 3)),
        ops.explain(ops.reduced_kv_attention, heads, keys, keys),
    )
    chosen = {
        name for answers in calls for name, a in answers.items() if a.startswith("yes (chosen")
    }
    return tuple(name for name in ops.BACKENDS if name in chosen)


# ---- the picture -------------------------------------------------------------------------------


def _picture(path: str | Path | None) -> Path:
    """The picture named, or the first of the known ones that is here."""
    if path is not None:
        if not Path(path).is_file():
            raise FileNotFoundError(f"demo: there is no picture {str(path)!r}")
        return Path(path)
    checkout = Path(__file__).resolve().parent.parent
    places = [root / "examples" / "coffee.jpg" for root in (checkout, Path.cwd())]
    for package, name in (("skimage", "data/coffee.png"), ("sklearn", "datasets/images/china.jpg")):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            places.append(Path(spec.submodule_search_locations[0]) / name)
    for place in places:
        if place.is_file():
            return place
    raise FileNotFoundError("demo: no photograph was found; name one: clipweather demo PICTURE")


def _load(path: Path) -> Tensor:
    """A picture (1, 3, H, W) in [-1, 1], its longer side at most 1024."""
    from PIL import Image  # only the demonstration opens pictures

    with Image.open(path) as opened:
        rgb = opened.convert("RGB")
    rgb.thumbnail((1024, 1024))
    if min(rgb.size) < 32:
        raise ValueError(
            f"demo: the picture must be at least 32 x 32, got {rgb.width} x {rgb.height}"
        )
    values = torch.frombuffer(bytearray(rgb.tobytes()), dtype=torch.uint8)
    image = values.view(rgb.height, rgb.width, 3).permute(2, 0, 1).unsqueeze(0)
    return image.float() / 127.5 - 1.0


def _tokens(picture: Tensor) -> tuple[Tensor, int, int]:
    """Tokens (1, H·W, DIM) of a random first stage (convolution 7 × 7, stride 4, LayerNorm)."""
    weight = torch.randn(DIM, 3, 7, 7).to(picture) / (3 * 49) ** 0.5
    image = F.conv2d(picture, weight, stride=4, padding=3)
    tokens = F.layer_norm(image.flatten(2).transpose(1, 2).contiguous(), (DIM,))
    return tokens, image.shape[2], image.shape[3]


# ---- the clock ---------------------------------------------------------------------------------


def _measure(
    name: str, fused: Computation, plain: Computation, device: torch.device
) -> Measurement:
    """Medians of the two, run in turn."""
    finish = torch.cuda.synchronize if device.type == "cuda" else _nothing
    times: dict[Computation, list[float]] = {fused: [], plain: []}
    for computation in times:
        computation()
    finish()
    end = _now() + SECONDS_PER_ROW
    gc.collect()
    gc.disable()
    try:
        while len(times[plain]) < MOST_ROUNDS and (len(times[plain]) < 3 or _now() < end):
            for computation, seconds in times.items():
                start = _now()
                computation()
                finish()
                seconds.append(_now() - start)
    finally:
        gc.enable()
    medians = [statistics.median(seconds) for seconds in times.values()]
    return Measurement(name, plain=medians[1], fused=medians[0], rounds=len(times[plain]))


_now = time.perf_counter


def _nothing() -> None:
    return None


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if number is None else number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _keep_freed_memory() -> None:
    """Asks glibc to keep large freed buffers instead of returning each to the system.

    By default every large tensor costs page faults anew. That slows plain PyTorch, with its many
    intermediate tensors, far more than the fused operators; a fair clock runs without it.
    """
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(mmap_max, 0)
        mallopt(trim_threshold, 2**31 - 1)
