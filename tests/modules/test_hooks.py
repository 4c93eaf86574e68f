"""Hooks on layers that a fused pass replaces are called, on every device and backend alike."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from clipweather_fast.modules import SARFFN, ConvMlp, EfficientAttention
from same_module import randomised, tokens

MODULES = {
    "mlp": lambda: ConvMlp(8, 2),
    "parallel": lambda: SARFFN(8, 2, sign=-1, kernel_size=5),
    "direct": lambda: SARFFN(8, 2, arrangement="direct"),
    "sequential": lambda: SARFFN(8, 2, arrangement="sequential"),
    "attention": lambda: EfficientAttention(8, 2, 2),
}
PLACES = [
    ("mlp", "dwconv"),
    ("mlp", "dwconv.dwconv"),
    ("mlp", "act"),
    ("parallel", "dwconv.dwconv"),
    ("parallel", "act"),
    ("parallel", "sar"),
    ("parallel", "sar.depthwise"),
    ("direct", "sar.pointwise"),
    ("sequential", "dwconv"),
    ("sequential", "sar"),
    ("attention", "sr"),
]


@pytest.mark.parametrize(("kind", "place"), PLACES)
@torch.no_grad()
def test_a_hook_is_called_and_changes_nothing(kind: str, place: str) -> None:
    module, x = randomised(MODULES[kind]()), tokens(2, 6, 7, 8)
    expected, seen = module(x, 6, 7), []
    handle = module.get_submodule(place).register_forward_hook(lambda m, i, o: seen.append(o))
    torch.testing.assert_close(module(x, 6, 7), expected)
    assert len(seen) == 1
    handle.remove()
    module(x, 6, 7)
    assert len(seen) == 1


@torch.no_grad()
def test_what_a_hook_returns_counts() -> None:
    module, x = randomised(SARFFN(8, 2)), tokens(1, 5, 6, 8)
    _, residual = module(x, 5, 6, return_residual=True)
    module.sar.register_forward_hook(lambda m, i, o: 0 * o)
    y, none = module(x, 5, 6, return_residual=True)
    assert residual.abs().max() > 0
    assert none.abs().max() == 0
    plain = ConvMlp(8, 2)
    plain.load_state_dict({k: v for k, v in module.state_dict().items() if "sar." not in k})
    torch.testing.assert_close(y, plain(x, 5, 6))


@pytest.mark.parametrize(
    ("kind", "place"), [p for p in PLACES if p[1] in ("dwconv.dwconv", "sar.depthwise", "sr")]
)
def test_a_pruned_layer_trains(kind: str, place: str) -> None:
    """Pruning computes the weight in a hook; without it the second step has no graph."""
    module, x = randomised(MODULES[kind]()), tokens(1, 6, 7, 8)
    layer = module.get_submodule(place)
    prune.l1_unstructured(layer, "weight", amount=0.5)
    for _ in range(2):
        module(x, 6, 7).square().sum().backward()
    original = layer.get_parameter("weight_orig")
    with torch.no_grad():
        original.add_(1.0)
        changed = module(x, 6, 7)
        prune.remove(layer, "weight")
        torch.testing.assert_close(module(x, 6, 7), changed)


class Doubled(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@torch.no_grad()
def test_another_convolution_in_its_place_is_called() -> None:
    module, x = randomised(EfficientAttention(8, 2, 2)), tokens(1, 6, 7, 8)
    module.norm = nn.Identity()
    wanted = copy.deepcopy(module)
    wanted.sr.weight.mul_(2)
    wanted.sr.bias.mul_(2)
    other = Doubled(8, 8, 2, stride=2)
    other.load_state_dict(module.sr.state_dict())
    module.sr = other
    torch.testing.assert_close(module(x, 6, 7), wanted(x, 6, 7))
