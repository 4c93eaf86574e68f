"""What a training run is told: sections, read from YAML and from ``section.key=value``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipweather_fast.models import ClipWeatherConfig
from clipweather_fast.training.sections import (
    CheckpointSection,
    DataSection,
    DistillationSection,
    EmaSection,
    LogSection,
    LossesSection,
    ModelSection,
    OptimizerSection,
    RunSection,
    ScheduleSection,
    SynthesisSection,
    TextSection,
)
from clipweather_fast.training.strict import plain, section, unknown_key

__all__ = ["TrainingConfig", "read", "written"]

SECTIONS: dict[str, type[Any]] = {
    "run": RunSection,
    "model": ModelSection,
    "data": DataSection,
    "synthesis": SynthesisSection,
    "losses": LossesSection,
    "text": TextSection,
    "distillation": DistillationSection,
    "optimizer": OptimizerSection,
    "schedule": ScheduleSection,
    "ema": EmaSection,
    "checkpoint": CheckpointSection,
    "log": LogSection,
}


@dataclass(frozen=True)
class TrainingConfig:
    """A run's configuration."""

    run: RunSection = field(default_factory=RunSection)
    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    synthesis: SynthesisSection = field(default_factory=SynthesisSection)
    losses: LossesSection = field(default_factory=LossesSection)
    text: TextSection = field(default_factory=TextSection)
    distillation: DistillationSection = field(default_factory=DistillationSection)
    optimizer: OptimizerSection = field(default_factory=OptimizerSection)
    schedule: ScheduleSection = field(default_factory=ScheduleSection)
    ema: EmaSection = field(default_factory=EmaSection)
    checkpoint: CheckpointSection = field(default_factory=CheckpointSection)
    log: LogSection = field(default_factory=LogSection)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainingConfig:
        """The configuration with these sections; what is left out has its default.

        Raises:
            ValueError: for an unknown section or key, or a value that is not allowed.
        """
        made: dict[str, Any] = {}
        for name, content in values.items():
            if name == "model":
                made[name] = section(ModelSection, _model_values(content), name)
            elif name in SECTIONS:
                made[name] = section(SECTIONS[name], content, name)
            else:
                raise unknown_key(str(name), SECTIONS)
        return cls(**made)

    def to_dict(self) -> dict[str, Any]:
        """The sections as YAML has them, every key included."""
        found: dict[str, Any] = plain(self)
        model = found["model"]
        found["model"] = {"name": model["name"], "weights": model["weights"], **model["fields"]}
        return found

    def with_random_weights(self) -> TrainingConfig:
        """The same, with random weights for all frozen networks: for measuring, not for training.

        Text features are computed by the text tower, whatever file they were to come from.
        """
        values = self.to_dict()
        values["losses"]["perceptual_weights"] = "random"
        values["distillation"]["teacher_weights"] = "random"
        values["text"] |= {"features": None, "encoder_weights": "random"}
        network = self.model.network()
        if isinstance(network, ClipWeatherConfig):
            values["model"]["prior_weights"] = None if network.learns_prior else "random"
        return type(self).from_dict(values)


def read(path: str | Path, overrides: Iterable[str] = ()) -> TrainingConfig:
    """The configuration of a YAML file, and of those it extends, with single values changed.

    Args:
        path: the file. Its key ``extends`` names another one, relative to it, whose values count
            where it has none itself.
        overrides: ``section.key=value``, the value as in YAML.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is not YAML or extends itself, for an unknown key and for a
            value that is not allowed.
    """
    values = _file(Path(path), ())
    for override in overrides:
        _override(values, override)
    return TrainingConfig.from_dict(values)


def written(config: TrainingConfig) -> str:
    """The configuration as YAML, every key included, as :func:`read` takes it."""
    import yaml

    return str(yaml.safe_dump(config.to_dict(), sort_keys=False, allow_unicode=True))


def _file(path: Path, before: tuple[Path, ...]) -> dict[str, dict[str, Any]]:
    import yaml

    if not path.is_file():
        raise FileNotFoundError(f"configuration: there is no file {path}")
    place = path.resolve()
    if place in before:
        raise ValueError(f"configuration: {path} extends itself")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"configuration: {path} is not YAML: {error}") from error
    content = _mapping(content, str(path))
    parent = content.pop("extends", None)
    if parent is None:
        values: dict[str, dict[str, Any]] = {}
    elif isinstance(parent, str):
        values = _file(path.parent / parent, (*before, place))
    else:
        raise ValueError(f"configuration: extends in {path} must be a file, got {parent!r}")
    for name, own in content.items():
        inherited = values.get(name, {})
        own = _mapping(own, name)
        # The fields of another network's configuration would not fit this one.
        other = name == "model" and own.get("name", inherited.get("name")) != inherited.get("name")
        values[name] = own if other else {**inherited, **own}
    return values


def _override(values: dict[str, dict[str, Any]], text: str) -> None:
    import yaml

    key, equals, value = text.partition("=")
    name, dot, inner = key.strip().partition(".")
    if not (equals and dot and inner):
        raise ValueError(f"configuration: {text!r} must be section.key=value, as in run.epochs=10")
    if name not in SECTIONS:
        raise unknown_key(name, SECTIONS)
    try:
        values.setdefault(name, {})[inner] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ValueError(f"configuration: the value in {text!r} is not YAML: {error}") from error


def _mapping(content: Any, where: str) -> dict[str, Any]:
    if content is None:
        return {}
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        raise ValueError(f"configuration: {where} must be keys with values, got {content!r}")
    return dict(content)


def _model_values(content: Any) -> dict[str, Any]:
    """The model's section with the network's own fields under ``fields``."""
    values = _mapping(content, "model")
    own: dict[str, Any] = {key: values.pop(key) for key in ("name", "weights") if key in values}
    return {**own, "fields": values}
