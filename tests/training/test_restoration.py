"""The restoration task: its terms, their weights, when they begin, and whom they reach."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

import tiny_clip
from clipweather_fast import losses
from clipweather_fast.clip import EncoderUnavailable, TextFeatures
from clipweather_fast.clip._packages import import_open_clip, import_timm
from clipweather_fast.models import pretrained
from clipweather_fast.training import Progress, RestorationTask, TrainingConfig, read
from clipweather_fast.training.build import samples_of, trainer_of
from clipweather_fast.training.journal import read_log
from training_runs import MODEL, configuration

ABLATIONS = sorted((Path(__file__).resolve().parents[2] / "configs/ablations").glob("*.yaml"))
PROGRESS = Progress(step=8, steps=10, epoch=8, epochs=10, seed=5)


@pytest.fixture(scope="module", autouse=True)
def _tiny_models(tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        import_timm("this test")
        import_open_clip("this test")
    except EncoderUnavailable as error:
        pytest.skip(str(error))
    tiny_clip.register(tmp_path_factory.mktemp("configurations"))


#: CLIP in miniature, as the paper's network uses it.
CLIP: dict[str, Mapping[str, Any]] = {
    "model": {
        **MODEL,
        "prior_encoder": tiny_clip.KIND,
        "prior_weights": "random",
        "prior_dim": 16,
        "prior_width": 16,
        "residual_output": False,
    },
    "text": {"weight": 0.1, "encoder": tiny_clip.KIND, "encoder_weights": "random"},
    "distillation": {
        "weight": 0.1,
        "teacher": "tiny-resnet-quickgelu",
        "teacher_weights": "random",
        "start": 0.5,
    },
    "losses": {"perceptual": 0.04, "perceptual_weights": "random"},
}


def task_of(tmp_path: Path, **sections: Mapping[str, Any]) -> RestorationTask:
    merged = {name: {**CLIP.get(name, {}), **sections.get(name, {})} for name in {*CLIP, *sections}}
    return RestorationTask(configuration(tmp_path, **merged))


def test_the_terms_are_the_losses_times_their_weights(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    task.student.eval()  # no drop path
    image, truth = torch.rand(2, 2, 3, 64, 64)
    batch = {"image": image, "truth": truth, "weather": torch.tensor([2, 0])}
    parts = task.parts(batch, PROGRESS)
    network = cast(Any, task.student).network
    prior = task.frozen["prior"](image)
    y, residuals = network(image, prior, True)
    teacher = cast(Any, task.frozen["teacher"])
    text = cast(TextFeatures, task.text).features
    expected = {
        "smooth_l1": losses.smooth_l1(y, truth),
        "perceptual": 0.04 * task.frozen["perceptual"](y, truth),
        "ssim": 0.1 * losses.ssim_loss(y, truth),
        "psnr": 0.01 * losses.psnr_loss(y, truth),
        "text": 0.1
        * losses.text_cross_entropy(network.prior_head(prior), text, torch.tensor([2, 0])),
        "distillation": 0.1
        * losses.residual_distillation(
            residuals, network.residual_places(), teacher(image), teacher(truth)
        ),
    }
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value, msg=name)


@pytest.mark.parametrize(
    ("start", "epoch", "distils"),
    [(3, 2, False), (3, 3, True), (0.5, 4, False), (0.5, 5, True), (0, 0, True)],
)
def test_distillation_begins_when_it_should(
    tmp_path: Path, start: float, epoch: int, distils: bool
) -> None:
    task = task_of(tmp_path, distillation={"start": start}, text={"weight": 0})
    parts = task.parts(task.example(2), Progress(0, 10, epoch, 10))
    assert ("distillation" in parts) == distils


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_gradients_reach_the_student_and_no_teacher(tmp_path: Path, gamma: float) -> None:
    """At γ = 0 the prior's two layers learn from the text loss alone."""
    model = {"gamma_init": gamma, "drop_path_rate": 0.0}
    # At 128 × 128 every attention has several keys to choose from.
    task = task_of(tmp_path, model=model, distillation={"match": "project"}, data={"crop": 128})
    with torch.no_grad():  # no zero of an initialisation hides a path
        for name, parameter in task.student.named_parameters():
            if not name.endswith("gamma"):
                parameter.add_(torch.randn_like(parameter), alpha=0.03)
    parts = task.parts(task.example(2), PROGRESS)
    torch.stack([part for name, part in parts.items() if name != "text"]).sum().backward()
    for name, parameter in task.student.named_parameters():
        assert parameter.grad is not None, name
        untaught = gamma == 0 and "prior_head" in name
        assert (parameter.grad.abs().max() > 0) != untaught, name
    for module in task.frozen.values():
        assert all(parameter.grad is None for parameter in module.parameters())
    task.parts(task.example(2), PROGRESS)["text"].backward()
    head = cast(nn.Module, cast(Any, task.student).network.prior_head)
    assert all(bool((p.grad != 0).any()) for p in head.parameters() if p.grad is not None)


def test_weather_is_put_on_by_the_samples_seed_alone(tmp_path: Path) -> None:
    config = configuration(tmp_path, synthesis={"clear": 0.3, "strength": [0.5, 1.5]})
    task, samples = RestorationTask(config), samples_of(config)
    one = [task._with_weather({k: v[None] for k, v in samples[i].items()}, 0.3) for i in range(10)]
    batch = {name: torch.stack([samples[i][name] for i in range(10)]) for name in samples[0]}
    together = task._with_weather(batch, 0.3)
    for i, alone in enumerate(one):
        assert torch.equal(together["image"][i], alone["image"][0])
    clear = [bool((m["image"] == m["truth"]).all()) for m in one]
    assert 0 < sum(clear) < 8
    assert [int(m["weather"]) == -1 for m in one] == clear
    assert not (task._with_weather(batch, 0.0)["weather"] == -1).any()


def test_held_out_pictures_are_measured_by_weather(tmp_path: Path) -> None:
    task = RestorationTask(configuration(tmp_path))
    task.student.eval()
    batch = {
        "image": torch.rand(3, 3, 64, 64),
        "truth": torch.rand(3, 3, 64, 64),
        "weather": torch.tensor([0, 2, 2]),
    }
    found = task.examine(batch)
    # A new network that adds the picture to what it computes gives it back.
    torch.testing.assert_close(found.measures["psnr"], found.measures["psnr before"])
    assert found.measures["psnr snow"].isnan().tolist() == [False, True, True]
    assert found.measures["psnr rain"].isnan().all()
    assert list(found.pictures) == ["input", "restored", "truth"]


def test_the_export_has_the_text_features(tmp_path: Path) -> None:
    task = task_of(tmp_path)
    state = {name: tensor * 2 for name, tensor in task.student.state_dict().items()}
    task.export(state, tmp_path / "model")
    network = pretrained(tmp_path / "model")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[f"network.{name}"])
    found = TextFeatures.load(tmp_path / "model" / "text_features.safetensors")
    assert torch.equal(found.features, cast(TextFeatures, task.text).features)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"model": {"num_kernels": 0}}, r"distillation\.weight must be 0 for a network without"),
        ({"model": {"prior_dim": 12}}, r"have length 16, but model\.prior_dim is 12"),
        ({"model": {"prior_width": 24}}, r"the length model\.prior_width = 24, got snow, rain"),
        (
            {"model": {"prior_encoder": "none"}},
            r"text\.weight must be 0 for a network without a prior",
        ),
    ],
    ids=["distillation", "dimension", "width", "text"],
)
def test_terms_without_their_part_are_named(
    tmp_path: Path, sections: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        task_of(tmp_path, **sections)


# ---- the paper's ablations ----------------------------------------------------------------------


def tiny(path: Path, tmp_path: Path) -> TrainingConfig:
    """A shipped configuration at sizes for a test; its own choices stay."""
    values = read(path).to_dict()
    for name, sections in configuration(tmp_path).to_dict().items():
        if name == "log":
            values[name] = sections
    values["run"] |= {"output": str(tmp_path / "run"), "epochs": 10, "device": "cpu"}
    values["data"] |= {
        "clean": [str(tmp_path / "photographs")],
        "samples_per_epoch": 2,
        "crop": 64,
        "batch": 2,
        "workers": 0,
    }
    start = values["distillation"]["start"]
    values["distillation"]["start"] = start * 10 // 250
    values = _small_encoders(values)
    for name in ("dims", "depths"):
        values["model"][name] = MODEL[name]
    return TrainingConfig.from_dict(values).with_random_weights()


def _small_encoders(values: dict[str, Any]) -> dict[str, Any]:
    """Networks of a few thousand parameters in the place of those of many millions."""
    imagenet = "imagenet:test_resnet"
    values["text"]["encoder"] = tiny_clip.KIND
    values["losses"]["perceptual_kind"] = imagenet
    network = TrainingConfig.from_dict(values).model.network()
    kind, teacher = getattr(network, "prior_encoder", None), values["distillation"]["teacher"]
    if kind is not None:
        values["model"]["prior_width"] = 16
        if kind.startswith("clip:"):
            values["model"] |= {"prior_encoder": tiny_clip.KIND, "prior_dim": 16}
        elif kind.startswith("imagenet:"):
            values["model"] |= {"prior_encoder": imagenet, "prior_dim": 96}
    if teacher.startswith("imagenet:"):
        small = "imagenet:test_vit" if "vit" in teacher else imagenet
        values["distillation"]["teacher"] = small
    else:
        values["distillation"]["teacher"] = "tiny-resnet-quickgelu"
    return values


@pytest.mark.parametrize("path", ABLATIONS, ids=[path.stem for path in ABLATIONS])
def test_every_ablation_runs_ten_steps(path: Path, tmp_path: Path) -> None:
    config = tiny(path, tmp_path)
    trainer = trainer_of(config)
    before = {name: tensor.clone() for name, tensor in trainer.student.state_dict().items()}
    assert trainer.fit().step == 10
    records = read_log(tmp_path / "run" / "log.jsonl")
    parts = {
        "smooth_l1": True,
        "perceptual": True,
        "ssim": config.losses.ssim > 0,
        "psnr": config.losses.psnr > 0,
        "text": config.text.weight > 0,
        "distillation": config.distillation.weight > 0,
    }
    assert records[-1]["parts"].keys() == {name for name, there in parts.items() if there}
    late = config.distillation.weight > 0 and config.distillation.start > 0
    assert ("distillation" in records[0]["parts"]) == (parts["distillation"] and not late)
    after = pretrained(tmp_path / "run" / "model").state_dict()
    # Not all learn: an attention to a single key, or the choice of a single kernel, cannot.
    moved = [not torch.equal(tensor, before[f"network.{name}"]) for name, tensor in after.items()]
    assert sum(moved) > 0.8 * len(moved)
