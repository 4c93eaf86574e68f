"""The whole network on a picture: this package's operators, plain PyTorch, and TransWeather on it.

``eager`` and ``compile`` are the same network on the reference backend, which forms the attention's
scores; ``eager sdpa`` has PyTorch's own attention in their place, and is the only plain opponent
where the scores would take gigabytes. ``transweather`` is the base network of the field on the same
two footings: another function, so its values are not compared with ours.

The prior is an input: its encoder looks at 224 × 224 pixels whatever the picture's size, and is the
same for everyone.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.models import bench_sar_ffn
from benchmarks.models.tokens import TokenSize
from benchmarks.shapes import PICTURES
from benchmarks.subject import Case, Contestant, Inputs, Subject, Work
from clipweather_fast import create_model, use_backend
from clipweather_fast.speed import pytorch_alone

#: More pixels than this, and the reference's scores take several gigabytes.
_MOST_SCORED = 8 * 480 * 720


@dataclass(frozen=True)
class PictureSize:
    """A batch of pictures and the network it goes through."""

    name: str
    network: str
    n: int
    h: int
    w: int

    @property
    def scored(self) -> bool:
        """Whether opponents that form the attention's scores can take part."""
        return self.h * self.w <= 480 * 720 and self.n * self.h * self.w <= _MOST_SCORED


@cache
def _network(name: str, dtype: torch.dtype, device: str) -> nn.Module:
    """The network with noise on its parameters, so that no zero takes a part out of the sums."""
    torch.manual_seed(0)
    prior = {} if name == "transweather" else {"prior_encoder": "clip:unused", "prior_dim": 512}
    network = create_model(name, **prior).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return network.to(device, dtype)


def _inputs(
    size: PictureSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    x = torch.rand(size.n, 3, size.h, size.w, generator=generator)
    prior = torch.randn(size.n, 512, generator=generator)
    return {
        "module": _network(size.network, dtype, device),
        "x": x.to(device, dtype),
        "prior": prior.to(device, dtype),
    }


def _plain(inputs: Inputs) -> Tensor:
    y: Tensor = inputs["module"](inputs["x"], inputs["prior"])
    return y


def _ours(inputs: Inputs, backend: str | None) -> Tensor:
    with use_backend(backend or "auto"):
        return _plain(inputs)


def _sdpa(inputs: Inputs) -> Tensor:
    with pytorch_alone():
        return _plain(inputs)


def _transweather(inputs: Inputs, *, sdpa: bool) -> Tensor:
    x = inputs["x"]
    network = _network("transweather", x.dtype, x.device.type)
    with pytorch_alone(scores=not sdpa):
        y: Tensor = network(x)
        return y


def _opponents(case: Case, device: str) -> list[Contestant]:
    return [Contestant("eager sdpa", _sdpa, "contiguous", torch.get_num_threads())]


def _unlike(case: Case, device: str) -> list[Contestant]:
    kinds = {"transweather sdpa": True} | ({"transweather": False} if case.size.scored else {})
    return [
        Contestant(name, partial(_transweather, sdpa=sdpa), "contiguous", torch.get_num_threads())
        for name, sdpa in kinds.items()
    ]


def _explain(inputs: Inputs) -> dict[str, str]:
    """Of the feed-forward blocks' operator, which every backend that is there can run."""
    x = inputs["x"]
    size = TokenSize("", x.shape[0], x.shape[2] // 4, x.shape[3] // 4, 64, 1, 4)
    tokens = x.new_empty(size.n, size.h * size.w, size.dim)
    return bench_sar_ffn.SUBJECT.explain({"x": tokens, "H": size.h, "W": size.w})


def _work(size: PictureSize, dtype: torch.dtype, direction: str) -> Work:
    """The picture's bytes; a network's roof is not stated."""
    return Work(3 * size.n * size.h * size.w * dtype.itemsize, 0)


def _gate_size(size: PictureSize) -> PictureSize:
    """Small enough for float64, and padded on both sides."""
    return dataclasses.replace(size, n=1, h=min(size.h, 120), w=min(size.w, 180))


SUBJECT = Subject(
    topic="clip_weather",
    inputs=_inputs,
    ours=_ours,
    reference=_plain,
    differentiable=(
        "x",
        "module.encoder.patch_embed1.proj.weight",
        "module.encoder.block1.0.mlp.sar.weight",
        "module.encoder.patch_block2.0.attn.kv.weight",
        "module.prior_head.fc2.weight",
        "module.prior_embedding.block1.0.attn.tokens",
        "module.decoder.convd8x.conv2d.weight",
    ),
    rotating=("x", "prior"),
    work=_work,
    explain=_explain,
    layouts=("contiguous",),
    opponents=_opponents,
    unlike=_unlike,
    gate_size=_gate_size,
    around=partial(use_backend, "reference"),
    matrix=True,
)
#: Where the reference's scores do not fit.
WITHOUT_SCORES = dataclasses.replace(SUBJECT, plain=False)

_SCOPES = {
    ("clipweather_tiny", "256x256", 1): "quick",
    ("clipweather_base", "256x256", 1): "headline",
    ("clipweather_base", "480x720", 1): "headline",
}


def cases(device: str) -> list[Case]:
    dtypes = (torch.float32,) if device == "cpu" else (torch.float32, torch.bfloat16)
    found = []
    for network in ("clipweather_tiny", "clipweather_small", "clipweather_base"):
        for picture, (h, w) in PICTURES.items():
            for n in (1, 8):
                batch = "" if n == 1 else f" batch {n}"
                size = PictureSize(f"{network} {picture}{batch}", network, n, h, w)
                scope = _SCOPES.get((network, picture, n), "full")
                found += [Case(size, dtype, "forward", scope) for dtype in dtypes]
                if network == "clipweather_base" and picture == "256x256":
                    found += [Case(size, dtype, "both", "full") for dtype in dtypes]
    return found


def test_clip_weather(case: Case, measured: Any) -> None:
    measured(SUBJECT if case.size.scored else WITHOUT_SCORES, case)
