"""Images of more than 2^31 elements: every index is 64 bits wide.

They take 4 to 9 GiB, more than the machines that run the other tests need have, so they run with
``--large`` only.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipweather_fast import ops
from operands import mixed_kernels, predictor

pytestmark = pytest.mark.large
CHANNELS, HEIGHT, WIDTH = 64, 8193, 4096


@pytest.fixture(params=["cpu", "cuda", "triton"])
def backend(request: pytest.FixtureRequest) -> str:
    device = "cpu" if request.param == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    answer = ops.explain(ops.depthwise_conv2d, *(t.to(device) for t in _probe()))[request.param]
    if not answer.startswith("yes"):
        pytest.skip(answer)
    return request.param


def _probe() -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 3, 3)


def image(backend: str) -> Tensor:
    """Zeros (1, C, H, W), channels-last, but for the last rows."""
    device = "cpu" if backend == "cpu" else "cuda"
    dense = torch.zeros(1, HEIGHT, WIDTH, CHANNELS, dtype=torch.bfloat16, device=device)
    assert dense.numel() > 2**31
    dense[:, -4:] = torch.randn(1, 4, WIDTH, CHANNELS, device=device)
    return dense.permute(0, 3, 1, 2)


def test_sar_logits(backend: str) -> None:
    x = image(backend)
    parameters = {name: t.to(x.device, torch.float32) for name, t in predictor(CHANNELS, 2).items()}
    found = ops.sar_logits(x, **parameters, backend=backend)
    tile = ops.sar_logits(x[:, :, -5:], **parameters, backend=backend)
    assert torch.equal(found[:, :, -4:], tile[:, :, -4:])
    assert torch.equal(found[:, :, 1], found[:, :, 2])


def test_sar_conv2d(backend: str) -> None:
    x = image(backend)
    kernels = mixed_kernels(CHANNELS, 1, 3, bias=True, static=False)
    weight, bias = (kernels[name].to(x.device, torch.float32) for name in ("weight", "bias"))
    logits = torch.zeros(1, 1, 1, 1, dtype=x.dtype, device=x.device).expand(1, 1, HEIGHT, WIDTH)
    found = ops.sar_conv2d(x, logits, weight, bias, backend=backend)
    tile = ops.sar_conv2d(x[:, :, -5:], logits[:, :, -5:], weight, bias, backend=backend)
    assert torch.equal(found[:, :, -4:], tile[:, :, -4:])
    assert torch.equal(found[:, :, 1], found[:, :, 2])


def test_reduced_kv_attention(backend: str) -> None:
    """Queries of stride 0: only the result is large."""
    device = "cpu" if backend == "cpu" else "cuda"
    one = torch.randn(1, 1, 1, 64, dtype=torch.bfloat16, device=device)
    keys = torch.randn(1, 3, 1, 64, dtype=torch.bfloat16, device=device)
    out = ops.reduced_kv_attention(one.expand(1, 2**25 + 1, 1, 64), keys, keys, backend=backend)
    expected = ops.reduced_kv_attention(one, keys, keys, backend=backend)
    assert torch.equal(out[:, -1:], expected)
    assert torch.equal(out[:, 2**25 - 1 : 2**25], expected)
