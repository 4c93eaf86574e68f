"""Configurations: files that extend others, single changes, and words for what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clipweather_fast.models import ClipWeatherConfig
from clipweather_fast.training import TrainingConfig, read
from clipweather_fast.training.config import written

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))


def made(tmp_path: Path, text: str, name: str = "a.yaml") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_shipped_configurations_are_valid_and_named_for_their_output(path: Path) -> None:
    config = read(path)
    assert Path(config.run.output).name == path.stem
    assert TrainingConfig.from_dict(config.to_dict()) == config


def test_every_row_of_the_ablation_is_there() -> None:
    tables = {name.partition("_")[0] for name in (path.stem for path in FILES) if "_" in name}
    assert {"table2", "table5", "table6", "table7", "table8", "figure8"} <= tables
    assert len(list((CONFIGS / "ablations").glob("*.yaml"))) >= 25


def test_the_papers_recipe() -> None:
    config = read(CONFIGS / "paper.yaml")
    assert config.model.network() == ClipWeatherConfig()
    assert (config.optimizer.lr, config.optimizer.betas) == (2e-4, (0.9, 0.999))
    assert (config.schedule.kind, config.schedule.every, config.schedule.factor) == (
        "step",
        100,
        0.5,
    )
    assert (config.data.batch, config.data.crop, config.run.epochs) == (32, 256, 250)
    weights = (config.losses.smooth_l1, config.losses.perceptual, config.losses.ssim)
    assert weights == (1.0, 0.04, 0.1)
    assert (config.losses.psnr, config.text.weight) == (0.01, 0.1)
    assert (config.distillation.weight, config.distillation.start) == (0.1, 200)


def test_written_and_read_again(tmp_path: Path) -> None:
    config = read(CONFIGS / "tiny_synthetic.yaml", ["data.clean=[a, b c]", "run.threads=2"])
    assert read(made(tmp_path, written(config))) == config


def test_a_file_extends_another_and_a_change_counts_most(tmp_path: Path) -> None:
    made(tmp_path, "run: {epochs: 5, seed: 7}\ndata: {batch: 4}", "base.yaml")
    path = made(tmp_path, "extends: base.yaml\nrun: {epochs: 6}")
    config = read(path, ["run.epochs=8", "data.clean=[x]"])
    assert (config.run.epochs, config.run.seed, config.data.batch) == (8, 7, 4)
    assert config.data.clean == ("x",)


def test_another_network_does_not_inherit_fields(tmp_path: Path) -> None:
    made(tmp_path, "model: {name: clipweather_base, num_kernels: 2}", "base.yaml")
    path = made(tmp_path, "extends: base.yaml\nmodel: {name: transweather}")
    assert read(path).model.fields == {}
    path = made(tmp_path, "extends: base.yaml\nmodel: {gamma_init: 0.5}")
    assert read(path).model.fields == {"num_kernels": 2, "gamma_init": 0.5}


def test_numbers_of_yaml_1_1() -> None:
    assert yaml.safe_load("2e-4") == "2e-4"
    config = TrainingConfig.from_dict({"optimizer": {"lr": "2e-4"}, "run": {"clip": 1}})
    assert (config.optimizer.lr, config.run.clip) == (2e-4, 1.0)
    assert isinstance(config.run.clip, float)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"run": {"epoch": 1}}, r"no key run\.epoch; did you mean run\.epochs\?"),
        ({"runs": {}}, r"no key runs; did you mean run\?"),
        ({"zzz": {}}, "no key zzz; there are run, model"),
        (
            {"model": {"num_kernel": 3}},
            r"no key model\.num_kernel; did you mean model\.num_kernels",
        ),
        ({"model": {"name": "clipwether_base"}}, "did you mean 'clipweather_base'"),
        ({"model": {"num_kernels": 9}}, "num_kernels must be an integer 0 to 8, got 9"),
        ({"run": 3}, "run must be a section of keys, got 3"),
        ({"run": {"epochs": "many"}}, r"run\.epochs must be an integer, got 'many'"),
        ({"run": {"epochs": True}}, r"run\.epochs must be an integer, got True"),
        ({"run": {"epochs": 0}}, r"run\.epochs must be 1 or more, got 0"),
        ({"run": {"output": None}}, r"run\.output must be text, got None"),
        ({"run": {"precision": "half"}}, r"run\.precision must be one of float32, bfloat16"),
        ({"run": {"resume": "yes"}}, r"run\.resume must be one of auto, never, changed"),
        ({"data": {"flips": 1}}, r"data\.flips must be true or false, got 1"),
        ({"data": {"cutmix": 2}}, r"data\.cutmix must be from 0 to 1, got 2\.0"),
        ({"data": {"pairs": "a", "clean": ["b"]}}, r"data\.clean must be empty where data\.pairs"),
        ({"data": {"weathers": ["hail"]}}, r"data\.weathers must be some of snow, rain, raindrop"),
        ({"optimizer": {"betas": [0.9]}}, r"optimizer\.betas must be two numbers"),
        ({"optimizer": {"lr": "fast"}}, r"optimizer\.lr must be a number, got 'fast'"),
        (
            {"schedule": {"warmup": 1.5}},
            r"schedule\.warmup must be steps \(an integer\) or a share",
        ),
        ({"distillation": {"start": 1.0}}, r"distillation\.start must be an epoch"),
        ({"losses": dict.fromkeys(("smooth_l1", "perceptual", "ssim", "psnr"), 0)}, "above 0"),
        ({"ema": {"decay": 1.0}}, r"ema\.decay must be in \[0, 1\)"),
        ({"synthesis": {"strength": [2, 1]}}, r"synthesis\.strength must be two numbers"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        TrainingConfig.from_dict(values)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("run.epochs", "must be section.key=value"),
        ("epochs=3", "must be section.key=value"),
        ("rum.epochs=3", r"no key rum; did you mean run\?"),
        ("run.epochs=[", "is not YAML"),
        ("data.crops=3", r"did you mean data\.crop\?"),
    ],
)
def test_a_wrong_change_is_named(tmp_path: Path, change: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(made(tmp_path, "run: {}"), [change])


def test_wrong_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no file"):
        read(tmp_path / "none.yaml")
    with pytest.raises(ValueError, match="is not YAML"):
        read(made(tmp_path, "run: ["))
    with pytest.raises(ValueError, match="extends itself"):
        read(made(tmp_path, "extends: a.yaml"))
    with pytest.raises(ValueError, match=r"extends in .* must be a file, got 3"):
        read(made(tmp_path, "extends: 3"))
    with pytest.raises(ValueError, match="must be keys with values"):
        read(made(tmp_path, "- 1"))
