"""A whole training step: forward, loss, backward and Adam, on this package's operators and without.

The loss is the recipe's terms that need no other network (smooth L1, SSIM, PSNR); Adam is PyTorch's
fused one, as the trainer has it; all are the same for all sides, but for SSIM, which has a kernel
of its own on the CPU. Where a case says so the network runs under autocast to bfloat16, as the
trainer has it, and parameters, loss and Adam stay float32. ``eager contiguous`` is the same network
on the reference backend, ``eager sdpa`` has PyTorch's own attention in it. The values that are
checked first are the loss and its gradients. While a step is timed Adam's rate is too small to
change a float32 weight, so that all steps do the same. The weather prior is an input.

Pictures per second are the batch over the step's time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from benchmarks.models import bench_sar_ffn
from benchmarks.models.tokens import TokenSize
from benchmarks.subject import Case, Contestant, Inputs, Subject, Work
from clipweather_fast import create_model, losses, use_backend
from clipweather_fast.speed import pytorch_alone
from clipweather_fast.training.adam import Adam


@dataclass(frozen=True)
class CropSize:
    """A batch of square crops and the network that learns from them."""

    name: str
    network: str
    n: int
    side: int
    autocast: bool = False


@cache
def _student(name: str, dtype: torch.dtype, device: str) -> tuple[nn.Module, Adam]:
    """The network with noise on its parameters, and its optimizer, after a first step."""
    torch.manual_seed(0)
    fields = {"prior_encoder": "clip:unused", "prior_dim": 512, "drop_path_rate": 0.0}
    network = create_model(name, **fields).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    network = network.to(device, dtype)
    optimizer = Adam(network.parameters(), lr=1e-15, fused=True)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return network, optimizer


def _inputs(
    size: CropSize, dtype: torch.dtype, device: str, layout: str, generator: torch.Generator
) -> Inputs:
    truth = torch.rand(size.n, 3, size.side, size.side, generator=generator)
    x = (truth + 0.1 * torch.randn(truth.shape, generator=generator)).clamp(0, 1)
    prior = torch.randn(size.n, 512, generator=generator)
    network, optimizer = _student(size.network, dtype, device)
    return {
        "module": network,
        "optimizer": optimizer,
        "x": x.to(device, dtype),
        "truth": truth.to(device, dtype),
        "prior": prior.to(device, dtype),
        "autocast": size.autocast,
    }


def _loss(inputs: Inputs) -> Tensor:
    x, truth = inputs["x"], inputs["truth"]
    with torch.autocast(x.device.type, torch.bfloat16, enabled=inputs["autocast"]):
        y = inputs["module"](x, inputs["prior"])
    y = y.to(truth.dtype)
    similar = 0.1 * losses.ssim_loss(y, truth) + 0.01 * losses.psnr_loss(y, truth)
    loss = losses.smooth_l1(y, truth) + similar
    # One number's error is a matter of luck: it is judged in the precision it was made in.
    return loss.bfloat16() if inputs["autocast"] and truth.dtype != torch.float64 else loss


def _step(inputs: Inputs) -> Tensor:
    """The loss; where no gradient of it is asked for, of a whole step."""
    if torch.is_grad_enabled():
        return _loss(inputs)
    with torch.enable_grad():
        inputs["optimizer"].zero_grad()
        loss = _loss(inputs)
        loss.backward()
        inputs["optimizer"].step()
    return loss.detach()


def _ours(inputs: Inputs, backend: str | None) -> Tensor:
    with use_backend(backend or "auto"):
        return _step(inputs)


def _plain(inputs: Inputs) -> Tensor:
    with use_backend("reference"):
        return _step(inputs)


def _plain_with_sdpa(inputs: Inputs) -> Tensor:
    with pytorch_alone():
        return _step(inputs)


def _opponents(case: Case, device: str) -> list[Contestant]:
    threads = torch.get_num_threads()
    return [
        Contestant("eager contiguous", _plain, "contiguous", threads),
        Contestant("eager sdpa", _plain_with_sdpa, "contiguous", threads),
    ]


def _explain(inputs: Inputs) -> dict[str, str]:
    """Of the feed-forward blocks' operator, which every backend that is there can run."""
    x = inputs["x"]
    size = TokenSize("", x.shape[0], x.shape[2] // 4, x.shape[3] // 4, 64, 1, 4)
    tokens = x.new_empty(size.n, size.h * size.w, size.dim)
    return bench_sar_ffn.SUBJECT.explain({"x": tokens, "H": size.h, "W": size.w})


def _work(size: CropSize, dtype: torch.dtype, direction: str) -> Work:
    """The pictures' bytes; a training step's roof is not stated."""
    return Work(6 * size.n * size.side**2 * dtype.itemsize, 0)


SUBJECT = Subject(
    topic="training_step",
    inputs=_inputs,
    ours=_ours,
    reference=_plain,
    differentiable=(
        "module.encoder.patch_embed1.proj.weight",
        "module.encoder.block1.0.mlp.sar.weight",
        "module.encoder.patch_block2.0.attn.kv.weight",
        "module.prior_head.fc2.weight",
        "module.prior_embedding.block1.0.attn.tokens",
        "module.decoder.convd8x.conv2d.weight",
    ),
    rotating=("x", "truth", "prior"),
    work=_work,
    explain=_explain,
    layouts=("contiguous",),
    opponents=_opponents,
    gate_size=lambda size: replace(size, n=1, side=128),
    around=partial(use_backend, "reference"),
    plain=False,
    matrix=True,
)

_SIZES = {
    CropSize("clipweather_tiny 128x128 batch 4", "clipweather_tiny", 4, 128): "quick",
    CropSize("clipweather_base 128x128 batch 4", "clipweather_base", 4, 128): "headline",
    CropSize(
        "clipweather_tiny 128x128 batch 4, autocast", "clipweather_tiny", 4, 128, True
    ): "quick",
    CropSize(
        "clipweather_base 128x128 batch 4, autocast", "clipweather_base", 4, 128, True
    ): "headline",
    CropSize("clipweather_base 256x256 batch 8", "clipweather_base", 8, 256): "full",
}


def cases(device: str) -> list[Case]:
    return [Case(size, torch.float32, "forward", scope) for size, scope in _SIZES.items()]


def test_training_step(case: Case, measured: object) -> None:
    measured(SUBJECT, case)  # type: ignore[operator]
