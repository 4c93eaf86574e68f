"""Soft residual distillation against its equations written out, and the laws it must obey."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))  # at the end: the package under test is the one installed

from benchmarks.losses.naive_distillation import naive_distillation  # noqa: E402
from clipweather_fast.losses import (  # noqa: E402
    _normalized_l1,
    residual_distillation,
    residual_projections,
)
from clipweather_fast.models._encoder import ResidualPlace  # noqa: E402
from small_networks import photograph, small  # noqa: E402

#: Two main blocks in stage 2, fewer and more channels than the teacher's, one equal.
PLACES = (
    ResidualPlace(1, False, 8, 4),
    ResidualPlace(1, True, 16, 8),
    ResidualPlace(2, False, 10, 8),
    ResidualPlace(2, False, 10, 8),
    ResidualPlace(2, True, 16, 16),
    ResidualPlace(3, False, 12, 16),
    ResidualPlace(4, False, 6, 32),
)
TEACHER = (5, 12, 12, 20)
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def students(
    n: int = 2, side: int = 64, layout: str = "contiguous", dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    maps = (torch.randn(n, p.channels, side // p.stride, side // p.stride) for p in PLACES)
    return [m.to(dtype).contiguous(memory_format=LAYOUTS[layout]).requires_grad_() for m in maps]


def teachers(
    n: int = 2, side: int = 64, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], list[Tensor]]:
    """Maps of weather and clean pictures; as the teacher's, their sides are rounded down."""
    shapes = [(n, c, side // s, side // s) for c, s in zip(TEACHER, (4, 8, 16, 32), strict=True)]
    one, two = ([torch.randn(shape).to(dtype) for shape in shapes] for _ in range(2))
    return one, two


def both(call: Any, residuals: list[Tensor], *rest: Any, **choices: Any) -> list[Tensor]:
    """The loss and its gradients."""
    loss = call(residuals, PLACES, *rest, **choices)
    wanted = [loss.detach()]
    for grad, residual in zip(
        torch.autograd.grad(loss, residuals, allow_unused=True), residuals, strict=True
    ):
        wanted.append(torch.zeros_like(residual) if grad is None else grad)
    return wanted


CHOICES = [
    dict(zip(("normalize", "blocks", "intra", "target"), values, strict=True))
    for values in itertools.product(
        ("channels", "sample", "none"), ("all", "last"), ("resize", "next"), ("residual", "weather")
    )
]


# ---- against the equations ---------------------------------------------------------------------


@pytest.mark.parametrize("choices", CHOICES, ids=lambda c: "-".join(c.values()))
def test_is_what_the_equations_say(choices: dict[str, str]) -> None:
    residuals, features = students(dtype=torch.float64), teachers(dtype=torch.float64)
    found = both(residual_distillation, residuals, *features, **choices)
    expected = both(naive_distillation, residuals, *features, **choices)
    torch.testing.assert_close(found, expected)
    assert found[0] > 0


@pytest.mark.parametrize("normalize", ["channels", "sample", "none"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("values", [1, 300, 1500, 1 << 22])
def test_pieces_change_nothing(
    normalize: str, layout: str, values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_normalized_l1, "PIECE", {"cpu": values})
    residuals, features = students(3, layout=layout), teachers(3)
    found = both(residual_distillation, residuals, *features, normalize=normalize)
    expected = both(naive_distillation, residuals, *features, normalize=normalize)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for grad, residual in zip(found[1:], residuals, strict=True):
        assert grad.stride() == residual.stride()


def test_odd_sizes_are_pooled_to_the_student_s() -> None:
    residuals = students(side=64, dtype=torch.float64)
    features = teachers(side=60, dtype=torch.float64)  # the network pads, the teacher cuts
    found = both(residual_distillation, residuals, *features)
    torch.testing.assert_close(found, both(naive_distillation, residuals, *features))


@pytest.mark.parametrize("choices", CHOICES[::5], ids=lambda c: "-".join(c.values()))
def test_projection_instead_of_pooling(choices: dict[str, str]) -> None:
    shape = {"blocks": choices["blocks"], "intra": choices["intra"]}
    modules = residual_projections(PLACES, TEACHER, **shape).double()  # type: ignore[arg-type]
    assert len(modules) == (7 if choices["blocks"] == "all" else 4)
    residuals, features = students(dtype=torch.float64), teachers(dtype=torch.float64)
    found = both(residual_distillation, residuals, *features, **choices, match=modules)
    expected = both(naive_distillation, residuals, *features, **choices, match=modules)
    torch.testing.assert_close(found, expected)
    residual_distillation(residuals, PLACES, *features, **choices, match=modules).backward()  # type: ignore[arg-type]
    assert all(parameter.grad is not None for parameter in modules.parameters())


@pytest.mark.parametrize("normalize", ["channels", "sample", "none"])
def test_gradcheck(normalize: Any) -> None:
    residuals = [torch.randn(1, p.channels, 2, 1, dtype=torch.float64) for p in PLACES]
    residuals = [residual.requires_grad_() for residual in residuals]
    features = [[torch.randn(1, c, 3, 2, dtype=torch.float64) for c in TEACHER] for _ in range(2)]

    def loss(*residuals: Tensor) -> Tensor:
        return residual_distillation(residuals, PLACES, *features, normalize=normalize)

    assert torch.autograd.gradcheck(loss, residuals)


# ---- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", ["channels", "sample", "none"])
def test_a_student_that_is_the_teacher_has_no_loss(normalize: Any) -> None:
    weather, clean = teachers()
    places = [ResidualPlace(i + 1, False, c, 4 * 2**i) for i, c in enumerate(TEACHER)]
    scale = 1.0 if normalize == "none" else 3.0  # normalised, only the direction counts
    residuals = [scale * (w - c) for w, c in zip(weather, clean, strict=True)]
    loss = residual_distillation(residuals, places, weather, clean, normalize=normalize)
    assert loss.item() == pytest.approx(0.0, abs=1e-7)
    pooled = [
        F.adaptive_avg_pool3d(r[:, None], (p.channels, 64 // p.stride, 64 // p.stride))[:, 0]
        for p in PLACES
        for r in [residuals[p.stage - 1]]
        if p.channels <= r.shape[1]
    ]
    smaller = [p for p in PLACES if p.channels <= TEACHER[p.stage - 1]]
    loss = residual_distillation(pooled, smaller, weather, clean, normalize=normalize)
    assert loss.item() == pytest.approx(0.0, abs=1e-7)


def test_no_weather_is_no_direction() -> None:
    """Where both pictures are alike the target is zero, and everything stays finite."""
    weather, _ = teachers()
    residuals = students()
    with torch.no_grad():
        residuals[0][0] = 0.0  # nor has the student one
    found = both(residual_distillation, residuals, weather, weather)
    assert all(value.isfinite().all() for value in found)
    expected = both(naive_distillation, residuals, weather, weather)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_blocks_of_one_stage_share_and_stages_add_up() -> None:
    residuals, features = students(), teachers()
    whole = residual_distillation(residuals, PLACES, *features)
    by_stage = [
        residual_distillation(
            residuals, PLACES, *features, stage_map=[i if i == stage else None for i in range(4)]
        )
        for stage in range(4)
    ]
    torch.testing.assert_close(whole, torch.stack(by_stage).sum())
    # Stage 2 has three maps: the mean over them.
    second = [i for i, place in enumerate(PLACES) if place.stage == 2]
    alone = [residual_distillation([residuals[i]], [PLACES[i]], *features).detach() for i in second]
    torch.testing.assert_close(by_stage[1].detach(), torch.stack(alone).mean())


def test_another_teacher_s_maps_by_the_stage_map() -> None:
    residuals, features = students(), teachers()
    reversed_features = [one[::-1] for one in features]
    found = residual_distillation(residuals, PLACES, *reversed_features, stage_map=(3, 2, 1, 0))
    torch.testing.assert_close(found, residual_distillation(residuals, PLACES, *features))


def test_descends_on_its_own_loss() -> None:
    residuals, features = students(), teachers()
    optimizer = torch.optim.Adam(residuals, lr=0.05)
    losses = []
    for _ in range(60):
        loss = residual_distillation(residuals, PLACES, *features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


def test_results_repeat() -> None:
    residuals, features = students(layout="channels_last"), teachers()
    one, two = (both(residual_distillation, residuals, *features) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))


# ---- precision and memory ----------------------------------------------------------------------


def test_sixteen_bits_and_autocast() -> None:
    residuals, features = students(), teachers()
    halves = [r.detach().bfloat16().requires_grad_() for r in residuals]
    widened = [h.detach().float().requires_grad_() for h in halves]
    with torch.autocast("cpu", torch.bfloat16):
        found = both(residual_distillation, halves, *features)
    expected = both(residual_distillation, widened, *features)
    assert found[0].dtype == torch.float32
    assert torch.equal(found[0], expected[0])
    for a, b in zip(found[1:], expected[1:], strict=True):
        assert a.dtype == torch.bfloat16
        assert torch.equal(a, b.bfloat16())


def test_inference_tensors_teach() -> None:
    with torch.inference_mode():
        features = teachers()
    for choices in CHOICES:
        found = both(residual_distillation, students(), *features, **choices)
        assert all(value.isfinite().all() for value in found)


def test_keeps_the_residuals_and_one_target_per_size() -> None:
    residuals, features = students(layout="channels_last"), teachers()
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = residual_distillation(residuals, PLACES, *features)
    own = {r.data_ptr() for r in residuals}
    targets = [size for address, size in kept.items() if address not in own]
    # Stage 2's two main blocks have one target. Channels: the smaller number of both sides.
    expected = [5 * 16**2, 5 * 8**2, 10 * 8**2, 12 * 4**2, 12 * 4**2, 6 * 2**2]
    assert sorted(targets) == sorted(2 * 4 * size for size in expected)
    assert loss.requires_grad


@pytest.mark.parametrize("normalize", ["channels", "sample", "none"])
def test_no_temporary_has_the_size_of_a_map(normalize: Any) -> None:
    shape, places = (8, 64, 64, 64), [ResidualPlace(1, False, 64, 4)]
    residual = torch.randn(shape).contiguous(memory_format=torch.channels_last).requires_grad_()
    weather, clean = torch.randn(8, 40, 64, 64), torch.randn(8, 40, 64, 64)
    size, target = residual.numel() * 4, 8 * 40 * 64 * 64 * 4

    def step() -> None:
        loss = residual_distillation(
            [residual], places, [weather], [clean], normalize, stage_map=(0, None, None, None)
        )
        torch.autograd.grad(loss, residual)

    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        step()
    events = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    held = most = 0
    for _, change in sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"):
        held += change
        most = max(most, held)
    # The gradient and the target are results; beside them there are pieces.
    assert most < size + target + 0.5 * size


# ---- networks ----------------------------------------------------------------------------------


class TinyTeacher(nn.Module):
    """Four maps at strides 4 to 32, as CLIP's trunk gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(before, c, 3, stride=s, padding=1)
            for before, c, s in zip((3, *TEACHER[:-1]), TEACHER, (4, 2, 2, 2), strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.layers:
            image = layer(image).relu()
            maps.append(image)
        return maps


def test_the_gradient_reaches_every_block_of_its_stage_and_no_teacher() -> None:
    torch.manual_seed(1)
    network, teacher = small(prior_encoder="none", prior_weights=None), TinyTeacher()
    weather, clean = photograph(64, 64, n=2), 0.5 * photograph(64, 64, n=2)
    blocks = [name for name, _ in network.named_modules() if name.endswith(".mlp")]
    blocks = [name for name in blocks if name.startswith("encoder")]
    assert len(blocks) == len(network.residual_places()) == 8
    for stage in range(4):
        _, residuals = network(weather, return_residuals=True)
        only = [i if i == stage else None for i in range(4)]
        # The teacher's features carry a graph here, as a careless caller's would.
        loss = residual_distillation(
            residuals,
            network.residual_places(),
            teacher(weather),
            teacher(clean),
            stage_map=only,
        )
        network.zero_grad()
        loss.backward()
        assert all(parameter.grad is None for parameter in teacher.parameters())
        for name in blocks:
            mlp = network.get_submodule(name)
            grads = [p.grad for p in mlp.parameters() if p.grad is not None]
            if f"block{stage + 1}." in name:
                assert max(float(g.abs().max()) for g in grads) > 0, name
            elif int(name.partition("block")[2][0]) > stage + 1:
                assert all(float(g.abs().max()) == 0 for g in grads), name


def test_a_network_descends_on_it() -> None:
    torch.manual_seed(1)
    network = small(prior_encoder="none", prior_weights=None).train()
    teacher = TinyTeacher()
    weather, clean = photograph(64, 64, n=2), 0.5 * photograph(64, 64, n=2)
    with torch.inference_mode():
        maps = teacher(torch.cat((weather, clean)))
    features = [m[:2] for m in maps], [m[2:] for m in maps]
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    losses = []
    for _ in range(15):
        _, residuals = network(weather, return_residuals=True)
        loss = residual_distillation(residuals, network.residual_places(), *features)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


# ---- wrong arguments ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"normalize": "batch"}, "normalize must be one of .*got 'batch'"),
        ({"blocks": "first"}, "blocks must be one of"),
        ({"intra": "skip"}, "intra must be one of"),
        ({"target": "clean"}, "target must be one of"),
        ({"match": "project"}, "match must be 'pool' or a module per map, got 'project'"),
        ({"match": nn.ModuleList()}, "a module for each of 7 maps, got 0"),
        ({"match": nn.ModuleList(nn.Identity() for _ in PLACES)}, "must give the teacher's 5"),
        ({"stage_map": (0, 1)}, "an entry for each of 4 stages"),
        ({"stage_map": (None,) * 4}, "no residual map to teach"),
        ({"stage_map": (0, 1, 2, 4)}, "the teacher's map 4 for stage 4, but it has 4"),
        ({"clean_features": None}, "None only if target is 'weather'"),
        ({"places": PLACES[1:]}, "as many, got 7 and 6"),
        ({"places": (PLACES[1], *PLACES[1:])}, r"residual 0 must be \(N, 16, H, W\)"),
        ({"weather_features": teachers(3)[0]}, r"with N = 2, got \(3, 5, 16, 16\)"),
    ],
)
def test_wrong_arguments_are_named(changes: dict[str, Any], words: str) -> None:
    weather, clean = teachers()
    arguments: dict[str, Any] = {
        "residuals": students(),
        "places": PLACES,
        "weather_features": weather,
        "clean_features": clean,
    }
    with pytest.raises(ValueError, match=words):
        residual_distillation(**(arguments | changes))


def test_projections_know_their_teacher() -> None:
    with pytest.raises(ValueError, match="the teacher's map 3 for stage 4, but it has 3"):
        residual_projections(PLACES, TEACHER[:3])
