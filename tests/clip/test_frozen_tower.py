"""CLIP's image encoder in its frozen form: what it computes, when it is taken, that it follows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_clip
from clipweather_fast import use_backend
from clipweather_fast.clip import PriorEncoder, build_prior_encoder
from clipweather_fast.models import _frozen, _frozen_tower, _recordings
from clipweather_fast.models._frozen_prior import FrozenPrior
from clipweather_fast.models.config import ClipWeatherConfig
from clipweather_fast.ops import _native

pytestmark = pytest.mark.skipif(
    _frozen._why_not(torch.float32) is not None, reason=str(_frozen._why_not(torch.float32))
)
needs_bfloat16 = pytest.mark.skipif(
    _frozen._why_not(torch.bfloat16) is not None, reason=str(_frozen._why_not(torch.bfloat16))
)
vision_transformers = pytest.mark.parametrize(
    "kind", [tiny_clip.KIND, "clip:tiny-vit", f"clip-class:{tiny_clip.NAME}"]
)


def held(kind: str = tiny_clip.KIND) -> tuple[FrozenPrior, PriorEncoder]:
    """What a network holds, with an encoder of this kind."""
    encoder = build_prior_encoder(kind, tiny_clip.clip_weights())
    prior = FrozenPrior(ClipWeatherConfig(prior_encoder=kind, prior_dim=encoder.dim))
    prior.encoders.append(encoder)
    return prior, encoder


def picture(n: int = 2) -> Tensor:
    return torch.rand(n, 3, 45, 61, generator=torch.Generator().manual_seed(1))


def forms(encoder: nn.Module) -> set[torch.dtype]:
    """The precisions of which there is a form."""
    made = _frozen_tower._forms.of(encoder)
    return {dtype for dtype, form in made.items() if form is not None}


@torch.no_grad()
def computed(prior: FrozenPrior, image: Tensor) -> Tensor:
    return prior(image)


@vision_transformers
def test_it_computes_what_the_modules_do(kind: str) -> None:
    prior, encoder = held(kind)
    got = computed(prior, picture())
    assert forms(encoder) == {torch.float32}
    exact = encoder.double()._encode(encoder.prepared(picture()).double())
    assert got.shape == exact.shape == (2, encoder.dim)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.abs().max()))


@vision_transformers
def test_its_replays_are_its_passes(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prior, encoder = held(kind)
    images = [picture() ** (1 + i / 4) for i in range(_recordings.PASSES_BEFORE + 3)]
    got = [computed(prior, image) for image in images]
    (form,) = _frozen_tower._forms.of(encoder).values()
    assert form is not None
    assert len(form.recordings._kept) == 1
    monkeypatch.setattr(_recordings, "MOST_VALUES", 0)
    for one, image in zip(got, images, strict=True):
        assert torch.equal(one, computed(prior, image))


@needs_bfloat16
@vision_transformers
def test_under_autocast_it_multiplies_in_bfloat16(kind: str) -> None:
    prior, encoder = held(kind)
    expected = encoder(picture())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = computed(prior, picture())
    assert forms(encoder) == {torch.bfloat16}
    assert got.dtype == torch.float32
    similar = torch.nn.functional.cosine_similarity(got, expected)
    assert float(similar.min()) > 0.999
    assert not torch.equal(got, expected)


@vision_transformers
def test_where_bfloat16_is_slower_it_multiplies_in_float32(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_native, "bfloat16_pays", lambda: False)
    prior, encoder = held(kind)
    expected = computed(prior, picture())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = computed(prior, picture())
    assert forms(encoder) == {torch.float32}
    assert torch.equal(got, expected)


def test_training_learns_from_the_same_prior_whatever_the_precision() -> None:
    prior, encoder = held()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = prior(picture())
    assert forms(encoder) <= {torch.float32}
    torch.testing.assert_close(got, encoder(picture()), rtol=1e-4, atol=1e-4)


def test_other_encoders_compute_by_their_modules() -> None:
    # A residual network has no form.
    encoder = build_prior_encoder("clip:tiny-resnet-quickgelu", "random")
    prior = FrozenPrior(ClipWeatherConfig(prior_dim=encoder.dim))
    prior.encoders.append(encoder)
    torch.testing.assert_close(computed(prior, picture()), encoder(picture()), rtol=0, atol=0)
    assert forms(encoder) == set()


def test_the_reference_backend_computes_by_the_modules() -> None:
    prior, encoder = held()
    with use_backend("reference"):
        got, expected = computed(prior, picture()), encoder(picture())
    assert forms(encoder) == set()
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_dtype_that_tensors_have_by_default_does_not_matter(
    dtype: torch.dtype, default_dtype: Callable[[torch.dtype], None]
) -> None:
    prior, encoder = held()
    image = picture()
    expected = computed(prior, image)
    assert forms(encoder) == {torch.float32}
    default_dtype(dtype)
    assert torch.equal(computed(prior, image), expected)


def written(encoder: Any) -> None:
    encoder.visual.proj.data.mul_(2)


def loaded(encoder: Any) -> None:
    encoder.load_state_dict({k: v * 1.5 for k, v in encoder.state_dict().items()})


def hooked(encoder: Any) -> None:
    encoder.visual.ln_post.register_forward_hook(lambda _, __, out: out * 2)


@pytest.mark.parametrize("change", [written, loaded, hooked])
def test_it_follows_the_encoder(change: Callable[[nn.Module], None]) -> None:
    prior, encoder = held()
    before = computed(prior, picture())
    change(encoder)
    after = computed(prior, picture())
    assert float((after - before).abs().max()) > 1e-3
    torch.testing.assert_close(after, encoder(picture()), rtol=1e-4, atol=1e-4)


def test_a_form_that_disagrees_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if another version of open_clip computed something else under the same names.
    monkeypatch.setattr(_frozen_tower, "QUICK", 1.5)
    prior, encoder = held()
    got = computed(prior, picture())
    assert forms(encoder) == set()
    torch.testing.assert_close(got, encoder(picture()), rtol=0, atol=0)
