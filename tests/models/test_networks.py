"""Every registered network: sizes, gradients, checkpoints, backends, compilation, precision."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from clipweather_fast import accelerate, use_backend
from clipweather_fast.models import RestorationNetwork, create_model, list_models, load_checkpoint
from clipweather_fast.ops import BackendUnavailable
from small_networks import disturbed, photograph, prior_of
from tolerance import ULPS, largest, largest_error

#: Layers of the official checkpoints that nothing computes with.
UNUSED = {"transweather": ("Tenc.mini_patch_embed4.", "convtail.conv_output.")}

every_network = pytest.mark.parametrize("name", list_models())


@cache
def kept(name: str) -> RestorationNetwork:
    """The network, made once for all tests: none of them changes it."""
    torch.manual_seed(0)
    return network(name)


def network(name: str, **overrides: Any) -> RestorationNetwork:
    overrides["drop_path_rate"] = 0.0
    if name != "transweather":
        overrides["gamma_init"] = 0.5
    return disturbed(create_model(name, **overrides)).eval()


@torch.no_grad()
def restored(network: RestorationNetwork, image: Tensor) -> Tensor:
    return network(image, prior_of(network))


def adds_the_picture(model: RestorationNetwork) -> bool:
    """Whether the output is what the network computes added to its input."""
    return bool(model.config.to_dict().get("residual_output", False))


@every_network
@pytest.mark.parametrize("size", [(1, 1), (17, 33), (250, 333)], ids=str)
def test_any_size_comes_back(name: str, size: tuple[int, int]) -> None:
    model = kept(name)
    y = restored(model, photograph(*size))
    assert y.shape == (1, 3, *size)
    assert y.dtype == torch.float32
    assert y.isfinite().all()
    assert y.abs().max() <= (2 if adds_the_picture(model) else 1)


def test_full_high_definition() -> None:
    y = restored(kept("clipweather_tiny"), photograph(1080, 1920))
    assert y.shape == (1, 3, 1080, 1920)
    assert y.isfinite().all()


@every_network
def test_every_parameter_and_the_picture_get_a_gradient(name: str) -> None:
    model = network(name).train()
    # Smaller, and some attention has a single key, whose queries get no gradient.
    image = photograph(128, 192, n=2).requires_grad_()
    model(image, prior_of(model, 2)).square().sum().backward()
    assert image.grad is not None
    assert image.grad.abs().max() > 0
    unused = UNUSED.get(name, ()) + (("prior_encoder.",) if "tiny" in name else ())
    for key, parameter in model.named_parameters():
        if key.startswith(unused):
            assert parameter.grad is None, key
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@every_network
def test_saved_and_loaded_it_is_the_same(name: str, tmp_path: Path) -> None:
    model = kept(name)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert not loaded.training
    assert {k: v.stride() for k, v in loaded.state_dict().items()} == {
        k: v.stride() for k, v in model.state_dict().items()
    }
    image = photograph(40, 30)
    assert torch.equal(restored(loaded, image), restored(model, image))

    file = tmp_path / "official.pth"
    torch.save({f"module.{k}": v for k, v in model.state_dict().items()}, file)
    fresh = network(name)
    load_checkpoint(fresh, file)
    assert torch.equal(restored(fresh, image), restored(model, image))


@every_network
@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_backends_agree(name: str, backend: str, device: str) -> None:
    """As wrong as the reference is, twice at most, and a few units: the project's one rule."""
    model, image = kept(name), photograph(64, 128, n=2)

    def run(backend: str, device: str, dtype: torch.dtype) -> Tensor:
        with torch.no_grad(), use_backend(backend):
            prior = prior_of(model, 2)
            prior = None if prior is None else prior.to(device, dtype)
            return model.to(device, dtype)(image.to(device), prior).cpu()

    try:
        got = run(backend, device, torch.float32)
        own = run("reference", device, torch.float32)
        truth = run("reference", "cpu", torch.float64)
    except BackendUnavailable as reason:
        pytest.skip(str(reason))
    finally:
        model.to("cpu", torch.float32)
    allowed = 2 * largest_error(own, truth) + ULPS * torch.finfo(got.dtype).eps * largest(truth)
    assert largest_error(got, truth) <= allowed


@every_network
def test_compiles_as_one_graph(name: str) -> None:
    torch.compiler.reset()
    # One block of each kind is traced in half the time. The networks' graphs differ in widths
    # alone, so one of them goes through the second compiler stage, too.
    blocks = {"query_blocks": 1} if name == "transweather" else {"prior_blocks": 1}
    model, image = network(name, depths=(1, 1, 1, 1), **blocks), photograph(50, 70)
    backend = "aot_eager" if name == "clipweather_tiny" else "eager"
    compiled = torch.compile(model, backend=backend, fullgraph=True)
    torch.testing.assert_close(restored(compiled, image), restored(model, image))


@every_network
def test_autocast_gives_its_dtype(name: str) -> None:
    model, image = kept(name), photograph(64, 64)
    exact = restored(model, image)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = restored(model, image)
    # The picture that is added is not rounded to what the network computes in.
    assert y.dtype == (torch.float32 if adds_the_picture(model) else torch.bfloat16)
    assert largest_error(y, exact) <= 0.05 * largest(exact)


@every_network
def test_accelerate_finds_nothing_left_to_do(name: str) -> None:
    model, image = kept(name), photograph(64, 64)
    before = restored(model, image)
    report = accelerate(model)
    assert report.swapped == ()
    assert report.already > 0
    assert torch.equal(restored(model, image), before)


@every_network
def test_memory_format_and_company_do_not_matter(name: str) -> None:
    model, images = kept(name), photograph(64, 64, n=2)
    with torch.no_grad():
        together = model(images, prior_of(model))
    alone = restored(model, images[1:].contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(together[1:], alone, rtol=0, atol=1e-5)
