"""SSIM and its loss: scikit-image, torchmetrics, worked values."""

import importlib
import subprocess
import sys

import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor
from torchmetrics.functional.image import structural_similarity_index_measure

from child import environment
from clipweather_fast.losses import ssim, ssim_loss
from clipweather_fast.ops import _native, use_backend
from clipweather_fast.ops._native import CPU_ISAS

plain = importlib.import_module("clipweather_fast.losses.ssim")._plain


def pictures(n: int = 2, h: int = 24, w: int = 31) -> tuple[Tensor, Tensor]:
    """Smooth pictures and disturbed ones, some values outside [0, 1]."""
    truth = torch.nn.functional.interpolate(torch.rand(n, 3, 4, 5), (h, w), mode="bilinear")
    return truth + 0.1 * torch.randn(n, 3, h, w), truth


def test_agrees_with_others() -> None:
    y, truth = pictures()
    found = ssim(y, truth, reduction="none")
    assert found.shape == (2,)
    for one, a, b in zip(found.tolist(), y, truth, strict=True):
        other = structural_similarity(
            a.double().numpy(),
            b.double().numpy(),
            channel_axis=0,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert one == pytest.approx(other, abs=2e-5)
    # Releases differ in whether windows across the border count: compare those inside.
    _, theirs = structural_similarity_index_measure(
        y, truth, data_range=1.0, return_full_image=True
    )
    inside = theirs[..., 5:-5, 5:-5].mean()
    assert ssim(y, truth).item() == pytest.approx(inside.item(), abs=2e-5)


def test_long_sides_are_blurred_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """A convolution where a matrix would be too large; the same values and gradients."""
    y, truth = pictures()
    y.requires_grad_()
    first = plain(y, truth).mean()
    (gradient,) = torch.autograd.grad(first, y)
    monkeypatch.setattr(
        importlib.import_module("clipweather_fast.losses.ssim"), "LONGEST_MATRIX", 26
    )
    second = plain(y, truth).mean()
    torch.testing.assert_close(second, first)
    torch.testing.assert_close(torch.autograd.grad(second, y)[0], gradient)


def test_worked_values() -> None:
    truth = torch.full((1, 1, 11, 11), 0.6, dtype=torch.float64)
    y = torch.full((1, 1, 11, 11), 0.2, dtype=torch.float64)
    # Constant pictures: no variance, the means alone.
    expected = (2 * 0.6 * 0.2 + 1e-4) / (0.36 + 0.04 + 1e-4)
    assert ssim(y, truth).item() == pytest.approx(expected)
    assert ssim_loss(y, truth).item() == pytest.approx(1 - expected)
    same, _ = pictures()
    assert ssim(same, same).item() == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_gradients(backend: str) -> None:
    y = torch.rand(1, 2, 12, 13, dtype=torch.float64, requires_grad=True)
    truth = torch.rand(1, 2, 12, 13, dtype=torch.float64)
    with use_backend(backend):
        assert torch.autograd.gradcheck(lambda y: ssim_loss(y, truth), y)
        assert torch.autograd.gradgradcheck(lambda y: ssim_loss(y, truth), y)
        truth.requires_grad_()
        assert torch.autograd.gradcheck(ssim_loss, (y, truth))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_autocast_and_layout_change_nothing(layout: torch.memory_format) -> None:
    y, truth = pictures()
    expected = ssim(y, truth)
    with torch.autocast("cpu", torch.bfloat16):
        found = ssim(y.contiguous(memory_format=layout), truth)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where each call of the kernel is noted."""
    if _native.why_not_loaded():
        pytest.skip("the native core is not there")
    found: list[int] = []
    module = importlib.import_module("clipweather_fast.losses._ssim_cpu")
    compute = module._similarity

    def counted(*arguments: object) -> Tensor:
        found.append(1)
        return compute(*arguments)

    monkeypatch.setattr(module, "_similarity", counted)
    return found


SIZES = [
    (1, 1, 11, 11),
    (2, 3, 11, 40),
    (1, 2, 50, 12),
    (2, 3, 24, 31),
    (1, 3, 37, 129),
    (3, 1, 26, 26),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_kernel_is_as_exact_as_pytorch(
    size: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = kernel_calls(monkeypatch)
    truth = torch.rand(size, dtype=torch.float64)
    y = truth + 0.1 * torch.randn(size, dtype=torch.float64)
    weights = torch.rand(size[0], dtype=torch.float64)

    def results(call: object, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        own = y.to(dtype).requires_grad_()
        values = call(own, truth.to(dtype))  # type: ignore[operator]
        assert values.dtype == dtype
        return values.detach(), torch.autograd.grad(values, own, weights.to(dtype))[0]

    true = results(plain, torch.float64)
    theirs = results(plain, dtype)
    ours = results(lambda a, b: ssim(a, b, reduction="none"), dtype)
    assert len(calls) == 1
    for exact, other, own in zip(true, theirs, ours, strict=True):
        least = 64 * torch.finfo(dtype).eps * float(exact.abs().max())
        allowed = max(2 * float((other - exact).abs().max()), least)
        assert float((own - exact).abs().max()) <= allowed


def test_the_kernel_says_the_same_on_any_number_of_threads_and_layout() -> None:
    y, truth = pictures(n=2, h=40, w=70)
    threads = torch.get_num_threads()
    found = []
    for number in (1, 2):
        for layout in (torch.contiguous_format, torch.channels_last):
            own = y.contiguous(memory_format=layout).requires_grad_()
            torch.set_num_threads(number)
            try:
                value = ssim(own, truth.contiguous(memory_format=layout))
                found.append((value.detach(), torch.autograd.grad(value, own)[0]))
            finally:
                torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for one in found for a, b in zip(one, found[0], strict=True))


def test_a_nan_stays_where_windows_see_it() -> None:
    y, truth = pictures(n=2, h=40, w=50)
    y[1, 2, 20, 30] = torch.nan
    own = y.clone().requires_grad_()
    values = ssim(own, truth, reduction="none")
    assert values.isnan().tolist() == [False, True]
    found = torch.autograd.grad(values.sum(), own)[0].isnan()
    again = y.clone().requires_grad_()
    expected = torch.autograd.grad(plain(again, truth).sum(), again)[0].isnan()
    inside = torch.zeros_like(found)
    inside[1, 2, 10:31, 20:41] = True
    assert torch.equal(found, inside)
    assert bool((expected & found).any())


def test_the_kernel_serves_ordinary_calls_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = kernel_calls(monkeypatch)
    y, truth = pictures()
    expected = plain(y, truth).mean()
    with use_backend("reference"):
        torch.testing.assert_close(ssim(y, truth), expected)
    torch.testing.assert_close(ssim(y, truth.clone().requires_grad_()), expected)
    torch.testing.assert_close(
        torch.func.vmap(lambda y: ssim(y[None], truth[:1]))(y)[0], plain(y[:1], truth[:1])[0]
    )
    torch.testing.assert_close(
        torch.func.grad(lambda y: ssim(y, truth))(y),
        torch.func.grad(lambda y: plain(y, truth).mean())(y),
    )
    assert not calls
    with use_backend("cpu"):
        torch.testing.assert_close(ssim(y, truth), expected)
    torch.testing.assert_close(
        ssim(y.bfloat16(), truth).bfloat16(), plain(y.bfloat16().float(), truth).mean().bfloat16()
    )
    assert len(calls) == 2


IN_A_CHILD = """
import torch
from clipweather_fast import _C
from clipweather_fast.losses.ssim import _plain, ssim
torch.manual_seed(0)
for dtype in (torch.float32, torch.float64):
    truth = torch.rand(2, 3, 33, 61, dtype=dtype)
    y = (truth + 0.1 * torch.randn_like(truth)).requires_grad_()
    for one, other in ((ssim(y, truth), _plain(y, truth).mean()),):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
        grads = [torch.autograd.grad(value, y)[0] for value in (one, other)]
        torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-8)
print(_C.cpu_isa)
"""


@pytest.mark.parametrize(
    "isa", range(1 + (0 if _native.why_not_loaded() else _native.core().cpu_isa))
)
def test_the_kernel_of_every_instruction_set(isa: int) -> None:
    if _native.why_not_loaded():
        pytest.skip("the native core is not there")
    done = subprocess.run(
        [sys.executable, "-c", IN_A_CHILD],
        env=environment(CLIPWEATHER_CPU_ISA=CPU_ISAS[isa]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == isa


def test_wrong_arguments_are_named() -> None:
    y = torch.rand(1, 3, 10, 40)
    with pytest.raises(ValueError, match="sides must be at least 11"):
        ssim(y, y)
    with pytest.raises(ValueError, match="ssim: y and truth must both"):
        ssim(y[0], y[0])
