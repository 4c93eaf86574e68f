"""SARConv2d: its size, its start, its equation, its words."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.modules import SARConv2d
from same_module import assert_same_function, randomised


def plain(module: SARConv2d) -> nn.Module:
    """Equations 4 and 5 with the per-pixel kernels formed one by one."""

    class Plain(SARConv2d):
        def forward(self, x: Tensor) -> Tensor:
            hidden = F.gelu(self.depthwise(x))
            logits = self.pointwise(hidden)
            maps = logits.softmax(1) if self.gate == "softmax" else logits.sigmoid()
            padding, channels = self.kernel_size // 2, self.channels
            total = torch.zeros_like(x)
            for n in range(self.num_kernels):
                kernel = self.weight[n].unsqueeze(1)
                mixed = F.conv2d(x, kernel, self.bias[n], padding=padding, groups=channels)
                total = total + maps[:, n : n + 1] * mixed
            return total

    twin = Plain(module.channels, module.num_kernels, module.kernel_size, gate=module.gate)
    twin.load_state_dict(module.state_dict())
    return twin


@pytest.mark.parametrize(
    ("channels", "parameters"), [(128, 5_507), (256, 11_011), (640, 27_523), (1024, 44_035)]
)
def test_parameter_count_is_the_specification_s(channels: int, parameters: int) -> None:
    assert sum(p.numel() for p in SARConv2d(channels).parameters()) == parameters


@pytest.mark.parametrize("gate", ["softmax", "sigmoid"])
@pytest.mark.parametrize("kernel_size", [3, 5, 7])
@pytest.mark.parametrize("num_kernels", [1, 3, 8])
def test_computes_its_equation(num_kernels: int, kernel_size: int, gate: str) -> None:
    module = randomised(SARConv2d(6, num_kernels, kernel_size, gate=gate))
    x = torch.randn(2, 6, 9, 7).contiguous(memory_format=torch.channels_last)
    assert_same_function(module, plain(module), x)


def test_starts_as_the_mean_of_its_kernels() -> None:
    module = SARConv2d(5)
    x = torch.randn(2, 5, 6, 8)
    mean = module.weight.mean(0).unsqueeze(1)
    expected = F.conv2d(x, mean, module.bias.mean(0), padding=1, groups=5)
    torch.testing.assert_close(module(x), expected)


def test_one_kernel_is_a_plain_depthwise_convolution() -> None:
    module = randomised(SARConv2d(5, num_kernels=1))
    x = torch.randn(1, 5, 6, 8)
    expected = F.conv2d(x, module.weight[0].unsqueeze(1), module.bias[0], padding=1, groups=5)
    torch.testing.assert_close(module(x), expected)


def test_initial_deviation_follows_the_fan_out() -> None:
    module = SARConv2d(4096)
    assert module.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.02)
    assert module.depthwise.weight.std().item() == pytest.approx((2 / 9) ** 0.5, rel=0.02)
    for zero in (module.bias, module.pointwise.weight, module.pointwise.bias):
        assert zero.count_nonzero() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"channels": 0}, "SARConv2d: channels must be a positive integer, got 0"),
        ({"channels": 4.0}, "SARConv2d: channels must be a positive integer, got 4.0"),
        (
            {"channels": 4, "num_kernels": 9},
            "SARConv2d: num_kernels must be one of 1, 2, 3, 4, 5, 6, 7, 8, got 9",
        ),
        (
            {"channels": 4, "kernel_size": 4},
            "SARConv2d: kernel_size must be one of 3, 5, 7, got 4",
        ),
        (
            {"channels": 4, "gate": "none"},
            "SARConv2d: gate must be one of softmax, sigmoid, got 'none'",
        ),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole text is compared
        SARConv2d(**arguments)
    assert str(caught.value) == words


def test_compiles_as_one_graph() -> None:
    torch.compiler.reset()
    module = randomised(SARConv2d(8)).eval()
    x = torch.randn(1, 8, 5, 6).contiguous(memory_format=torch.channels_last)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
