"""Who restores pictures in the whole networks' benchmark, each built for one case.

A side gets a batch (N, 3, H, W) float32 in [0, 1] on the device and gives the same. Ours is a
:class:`Restorer` as a user has it; ``ours captured`` is the network on our operators as one CUDA
graph. The others run the same network: ``eager`` as published code is written (channels first, the
attention's scores formed), ``eager channels-last`` in the memory format that suits it,
``eager sdpa`` with PyTorch's own attention besides, ``compile`` that through ``torch.compile`` with
frozen weights, ``onnxruntime`` and ``openvino`` from this package's export with its sizes fixed,
in processes of their own (``picture_engines.py``).
``transweather`` is the base network of the field, in the eager form that fits into memory; it
computes something else.

In 16 bits the plain sides have parameters of that dtype, the prior encoder's included.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models.picture_engines import ENGINES, Engine, EngineUnavailable, installed
from clipweather_fast import Restorer
from clipweather_fast.export import export_onnx
from clipweather_fast.models import RestorationNetwork
from clipweather_fast.models._padding import padded
from clipweather_fast.restore.memory import available_bytes
from clipweather_fast.speed import network_for_timing, pytorch_alone

__all__ = ["SideUnavailable", "build", "forget", "network", "prepare", "restorer_of", "scores_fit"]

Call = Callable[[Tensor], Tensor]
#: Times the bytes of the largest scores that the plain attention holds at once: their softmax too.
SCORES_HELD = 2


class SideUnavailable(RuntimeError):
    """A side that cannot take part in a case; the message says why."""


@cache
def network(name: str, given_prior: bool) -> RestorationNetwork:
    """The network of a case, on the CPU in float32; nobody changes it."""
    return network_for_timing(name, given_prior=given_prior)


def forget() -> None:
    """Gives back what was kept for further cases of one network."""
    network.cache_clear()
    _exported.cache_clear()
    torch._dynamo.reset()


class Plain(nn.Module):
    """The network and its prior encoder as one module, in a dtype and on a device.

    Args:
        original: the network.
        channels_last: run it as it is; else with images and kernels channels first.
    """

    def __init__(
        self,
        original: RestorationNetwork,
        dtype: torch.dtype,
        device: str,
        channels_last: bool = True,
    ) -> None:
        super().__init__()
        self.network = copy.deepcopy(original).to(device, dtype)
        # Shared by copies of a network, and no submodule of it.
        encoders = copy.deepcopy(list(getattr(original, "_frozen", ())))
        self.encoder = encoders[0].to(device, dtype) if encoders else None
        self.channels_last = channels_last
        if not channels_last:
            for module in self.network.modules():
                if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                    module.weight.data = module.weight.data.contiguous()

    def forward(self, image: Tensor) -> Tensor:
        network: Any = self.network
        if self.encoder is None:
            prior = network.encode_prior(image)
        else:
            prior = self.encoder(image).to(image.dtype)
        if self.channels_last:
            restored: Tensor = network(image, prior)
            return restored
        picture = padded(image, network.size_multiple, network.minimum_size) * 2 - 1
        picture = picture.to(network.image_encoder.dtype).contiguous()
        whole: Tensor = network.restored(picture, prior, None)
        return whole[:, :, : image.shape[2], : image.shape[3]]


def scores_fit(size: Any, dtype: torch.dtype, device: str) -> bool:
    """Whether plain attention's scores, of the first stage's queries and keys, fit into memory."""
    queries = -(-size.h // 4) * -(-size.w // 4)
    reduction = network(size.network, size.given_prior).config.reductions[0]
    # Never less than float32: softmax is computed in it.
    scores = size.n * queries * (queries // reduction**2) * max(4, dtype.itemsize)
    free = available_bytes(torch.device(device))
    return free is None or SCORES_HELD * scores <= free


def build(name: str, size: Any, dtype: torch.dtype, device: str) -> Call:
    """A side by name.

    Raises:
        SideUnavailable: with the reason.
    """
    original = network(size.network, size.given_prior)
    if name == "ours":
        return _ours(original, dtype, device)
    if name == "ours captured":
        return _captured(original, size, dtype, device)
    if name in ENGINES:
        return _engine(name, size, dtype, device)
    if name.startswith("transweather"):
        dtype = torch.float32 if name.endswith("float32") else dtype
        scores = scores_fit(size, dtype, device)
        return _eager(network("transweather", False), dtype, device, False, scores)
    if name.startswith("compile"):
        return _compiled(original, dtype, device, name.removeprefix("compile").strip() or None)
    forms = {"eager": (False, True), "eager channels-last": (True, True)}
    channels_last, scores = forms.get(name, (True, False))
    if scores and not scores_fit(size, dtype, device):
        raise SideUnavailable("the attention's scores do not fit into memory")
    return _eager(original, dtype, device, channels_last, scores)


def restorer_of(original: RestorationNetwork, dtype: torch.dtype, device: str) -> Restorer:
    """Ours, as a user has it."""
    return Restorer(copy.deepcopy(original), device=device, dtype=dtype)


def _ours(original: RestorationNetwork, dtype: torch.dtype, device: str) -> Call:
    restorer = restorer_of(original, dtype, device)

    def call(image: Tensor) -> Tensor:
        restored: Tensor = restorer(image)
        return restored

    return call


def _captured(original: RestorationNetwork, size: Any, dtype: torch.dtype, device: str) -> Call:
    """The network on our operators as one CUDA graph, without what a Restorer does around it."""
    if device != "cuda":
        raise SideUnavailable("CUDA graphs need a GPU")
    plain = Plain(original, dtype, device)
    image = torch.zeros(size.n, 3, size.h, size.w, device=device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        for _ in range(2):
            plain(image)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        restored = plain(image).float().clamp(0, 1)

    def call(picture: Tensor) -> Tensor:
        image.copy_(picture)
        graph.replay()
        return restored

    return call


def _eager(
    original: RestorationNetwork,
    dtype: torch.dtype,
    device: str,
    channels_last: bool,
    scores: bool,
) -> Call:
    plain = Plain(original, dtype, device, channels_last)

    def call(image: Tensor) -> Tensor:
        with pytorch_alone(scores=scores), torch.no_grad():
            restored: Tensor = plain(image)
            return restored.float().clamp(0, 1)

    return call


@contextmanager
def _frozen_weights(device: str) -> Iterator[None]:
    from torch._inductor import config

    before, config.freezing = config.freezing, device == "cpu"
    try:
        yield
    finally:
        config.freezing = before


def _compiled(
    original: RestorationNetwork, dtype: torch.dtype, device: str, mode: str | None
) -> Call:
    plain = Plain(original, dtype, device, channels_last=True)
    compiled = torch.compile(plain, dynamic=False, mode=mode)

    def call(image: Tensor) -> Tensor:
        with _frozen_weights(device), pytorch_alone(), torch.no_grad():
            restored: Tensor = compiled(image)
            return restored.float().clamp(0, 1)

    return call


# ---- from the exported file --------------------------------------------------------------------


@cache
def _exported(name: str, given_prior: bool) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "network.onnx"
        export_onnx(network(name, given_prior), path)
        return path.read_bytes()


def prepare(names: Iterable[str], size: Any, device: str) -> None:
    """Exports for the sides that need it, before anybody is called: exporting breaks up the heap,
    and the next call of every side of this process would take new pages. What cannot be exported
    is the sides' to say."""
    if device == "cpu" and any(map(installed, ENGINES.keys() & set(names))):
        with suppress(RuntimeError):
            _exported(size.network, size.given_prior)


def _engine(name: str, size: Any, dtype: torch.dtype, device: str) -> Call:
    if device != "cpu":
        raise SideUnavailable("takes part on CPUs only")
    content = _exported(size.network, size.given_prior)
    shape = (size.n, 3, size.h, size.w)
    short = str(dtype).removeprefix("torch.")
    try:
        return Engine(name, content, shape, short, torch.get_num_threads())
    except EngineUnavailable as reason:
        raise SideUnavailable(str(reason)) from reason
