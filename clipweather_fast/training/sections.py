"""The sections of a training configuration: frozen dataclasses that check themselves."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from clipweather_fast.models import NetworkConfig, default_config
from clipweather_fast.training.strict import plain, unknown_key

__all__ = [
    "CheckpointSection",
    "DataSection",
    "DistillationSection",
    "EmaSection",
    "LogSection",
    "LossesSection",
    "ModelSection",
    "OptimizerSection",
    "RunSection",
    "ScheduleSection",
    "SynthesisSection",
    "TextSection",
]


class _Checked:
    """Says which key is wrong, what was expected and what came."""

    _where = ""

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(
                f"configuration: {self._where}.{name} must be {expected}, "
                f"got {getattr(self, name)!r}"
            )

    def _require_word(self, name: str, *words: Any) -> None:
        self._require(name, getattr(self, name) in words, "one of " + ", ".join(map(str, words)))

    def _require_share(self, *names: str) -> None:
        for name in names:
            self._require(name, 0 <= getattr(self, name) <= 1, "from 0 to 1")

    def _require_at_least(self, least: float, *names: str) -> None:
        for name in names:
            value = getattr(self, name)
            self._require(name, value is None or value >= least, f"{least:g} or more")


@dataclass(frozen=True)
class RunSection(_Checked):
    """The run itself.

    Attributes:
        output: folder for everything the run writes.
        seed: of the initial weights and of every random choice.
        epochs: how often the data are gone through.
        device: ``auto`` (a GPU if there is one), ``cpu`` or ``cuda``.
        threads: to compute with on the CPU; None: PyTorch's number.
        precision: ``float32``, or ``bfloat16`` for the network under autocast.
        sharding: with several processes ``none`` (every one holds everything: DDP) or ``fsdp``.
        accumulate: micro-batches per step of the optimizer, and per process.
        clip: the largest norm of the gradient; None: whatever it is.
        resume: ``auto`` (go on from a checkpoint in ``output`` if there is one), ``never``
            (refuse to), or ``changed`` (go on although the configuration is another now).
    """

    _where = "run"

    output: str = "runs/clipweather"
    seed: int = 0
    epochs: int = 250
    device: str = "auto"
    threads: int | None = None
    precision: str = "float32"
    sharding: str = "none"
    accumulate: int = 1
    clip: float | None = None
    resume: str = "auto"

    def __post_init__(self) -> None:
        self._require_at_least(1, "epochs", "accumulate", "threads")
        self._require("output", bool(self.output), "a folder")
        self._require_word("device", "auto", "cpu", "cuda")
        self._require_word("precision", "float32", "bfloat16")
        self._require_word("sharding", "none", "fsdp")
        self._require_word("resume", "auto", "never", "changed")
        self._require("clip", self.clip is None or self.clip > 0, "above 0, or null")


@dataclass(frozen=True)
class ModelSection(_Checked):
    """The student.

    Attributes:
        name: a registered network.
        weights: where its first weights come from (a folder or file); None: random ones.
        fields: the fields of its configuration that differ from its preset; in a file they stand
            beside ``name``.
    """

    _where = "model"

    name: str = "clipweather_base"
    weights: str | None = None
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network()

    def network(self) -> NetworkConfig:
        """The network's configuration.

        Raises:
            ValueError: for an unknown network or field, or a value that is not allowed.
        """
        default = default_config(self.name)
        known = [f.name for f in dataclasses.fields(default)]
        for key in self.fields:
            if key not in known:
                raise unknown_key(f"model.{key}", ["name", "weights", *known])
        return default.replace(**plain(self.fields))

    def network_changes(self) -> dict[str, Any]:
        """The fields that differ from the preset, for ``create_model``."""
        return {name: plain(value) for name, value in self.fields.items()}


@dataclass(frozen=True)
class DataSection(_Checked):
    """Pictures to learn from: pairs, or clean photographs that weather is put on.

    Attributes:
        pairs: folder of pairs.
        layout: how the pairs lie there; ``auto`` finds out.
        split: ``train``, ``val`` or ``test``: only the pairs whose folder or list says so.
        clean: folders or files of clean photographs.
        samples_per_epoch: of clean photographs, crops per epoch; None: one per photograph.
        weathers: what clean photographs are put into, some of snow, rain and raindrop.
        shrink: clean photographs are reduced by a random factor up to this before they are cropped.
        turns: whether clean photographs are also shown on their side.
        recolor: how far the colours of clean photographs are changed at random, 0 to 2; None: not
            at all.
        crop: side of the square crops, in pixels.
        flips: whether crops are mirrored at random.
        batch: pictures per step of the optimizer, over all processes and micro-batches.
        workers: processes that read pictures, per training process.
        cutmix: probability that a batch is mixed; 0: never.
        cutmix_alpha: of the Beta distribution of the areas.
        validation: folder of pairs that are only looked at.
        validation_clean: photographs that are only looked at, with weather put on.
        validation_pictures: at most so many of them.
    """

    _where = "data"

    pairs: str | None = None
    layout: str = "auto"
    split: str | None = None
    clean: tuple[str, ...] = ()
    samples_per_epoch: int | None = None
    weathers: tuple[str, ...] = ("snow", "rain", "raindrop")
    shrink: float = 1.0
    turns: bool = False
    recolor: float | None = None
    crop: int = 256
    flips: bool = True
    batch: int = 32
    workers: int = 4
    cutmix: float = 0.0
    cutmix_alpha: float = 1.0
    validation: str | None = None
    validation_clean: tuple[str, ...] = ()
    validation_pictures: int = 12

    def __post_init__(self) -> None:
        self._require_at_least(1, "crop", "batch", "samples_per_epoch", "validation_pictures")
        self._require_at_least(0, "workers")
        self._require_at_least(1, "shrink")
        known = self.recolor is None or 0 <= self.recolor <= 2
        self._require("recolor", known, "0 to 2, or none")
        known = bool(self.weathers) and {*self.weathers} <= {"snow", "rain", "raindrop"}
        self._require("weathers", known, "some of snow, rain, raindrop")
        self._require_share("cutmix")
        self._require("cutmix_alpha", self.cutmix_alpha > 0, "above 0")
        self._require("clean", not (self.pairs and self.clean), "empty where data.pairs is given")
        both = self.validation and self.validation_clean
        self._require("validation_clean", not both, "empty where data.validation is given")


@dataclass(frozen=True)
class SynthesisSection(_Checked):
    """How weather is put on clean photographs.

    Attributes:
        strength: from and to, of ``degrade``; drawn for each picture, all values equally likely.
        scale: of ``degrade``; None: by the picture's size.
        clear: share of the pictures that stay clean, so that clean ones are left alone.
    """

    _where = "synthesis"

    strength: tuple[float, ...] = (1.0, 1.0)
    scale: float | None = None
    clear: float = 0.0

    def __post_init__(self) -> None:
        right = len(self.strength) == 2 and 0 <= self.strength[0] <= self.strength[1]
        self._require("strength", right, "two numbers, from and to, 0 or more")
        self._require("scale", self.scale is None or self.scale > 0, "above 0, or null")
        self._require_share("clear")


@dataclass(frozen=True)
class LossesSection(_Checked):
    """Weights of the terms, 0: left out; eqs. 10 and 11 of arXiv 2306.09008.

    Attributes:
        smooth_l1, perceptual, ssim, psnr: of the restored picture.
        psnr_softening: see :func:`clipweather_fast.losses.psnr_loss`.
        perceptual_kind, perceptual_weights: the network that compares, and where its weights are.
    """

    _where = "losses"

    smooth_l1: float = 1.0
    perceptual: float = 0.04
    ssim: float = 0.1
    psnr: float = 0.01
    psnr_softening: float = 0.0
    perceptual_kind: str = "vgg16"
    perceptual_weights: str | None = None

    def __post_init__(self) -> None:
        self._require_at_least(0, "smooth_l1", "perceptual", "ssim", "psnr", "psnr_softening")
        total = self.smooth_l1 + self.perceptual + self.ssim + self.psnr
        self._require("smooth_l1", total > 0, "above 0 where all other terms are 0")


@dataclass(frozen=True)
class TextSection(_Checked):
    """The weather, told from the projected prior.

    Attributes:
        weight: of the term; 0: left out.
        features: a file of :class:`clipweather_fast.clip.TextFeatures`; None: they are computed.
        encoder, encoder_weights: by this text tower.
        temperature: the scale of the cosine.
    """

    _where = "text"

    weight: float = 0.0
    features: str | None = None
    encoder: str = "clip:ViT-B-32-quickgelu"
    encoder_weights: str | None = "openai"
    temperature: float = 100.0

    def __post_init__(self) -> None:
        self._require_at_least(0, "weight")
        self._require("temperature", self.temperature > 0, "above 0")


@dataclass(frozen=True)
class DistillationSection(_Checked):
    """CLIP soft residual distillation, eqs. 6 and 7 of arXiv 2306.09008.

    Attributes:
        weight: of the term; 0: left out.
        start: when it begins: an epoch (an integer), or a share of the run (below 1, with a point).
        teacher: an open_clip ResNet, or ``imagenet:MODEL`` with a timm model; teacher_weights: the
            source of its weights.
        normalize, blocks, intra, target, match: as
            :func:`clipweather_fast.losses.residual_distillation` has them; ``match`` is ``pool`` or
            ``project``.
    """

    _where = "distillation"

    weight: float = 0.0
    start: int | float = 0
    teacher: str = "RN50x4-quickgelu"
    teacher_weights: str | None = "openai"
    normalize: str = "channels"
    blocks: str = "all"
    intra: str = "resize"
    target: str = "residual"
    match: str = "pool"

    def __post_init__(self) -> None:
        self._require_at_least(0, "weight", "start")
        late = isinstance(self.start, float) and self.start >= 1
        self._require("start", not late, "an epoch (an integer) or a share below 1")
        self._require_word("normalize", "channels", "sample", "none")
        self._require_word("blocks", "all", "last")
        self._require_word("intra", "resize", "next")
        self._require_word("target", "residual", "weather")
        self._require_word("match", "pool", "project")


@dataclass(frozen=True)
class OptimizerSection(_Checked):
    """Adam, or AdamW where ``weight_decay`` is not 0."""

    _where = "optimizer"

    lr: float = 2e-4
    betas: tuple[float, ...] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        self._require("lr", self.lr > 0, "above 0")
        self._require("eps", self.eps > 0, "above 0")
        right = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        self._require("betas", right, "two numbers in [0, 1)")
        self._require_at_least(0, "weight_decay")


@dataclass(frozen=True)
class ScheduleSection(_Checked):
    """The learning rate over the run, as factors of ``optimizer.lr``.

    Attributes:
        kind: ``step`` (the paper's), ``cosine`` or ``constant``.
        every, factor: ``step``: multiplied by ``factor`` after each ``every`` epochs.
        warmup: linear growth at the start, in steps (an integer) or as a share of the run.
        final: ``cosine``: the factor at the end.
    """

    _where = "schedule"

    kind: str = "step"
    every: int = 100
    factor: float = 0.5
    warmup: int | float = 0
    final: float = 0.01

    def __post_init__(self) -> None:
        self._require_word("kind", "step", "cosine", "constant")
        self._require_at_least(1, "every")
        self._require_at_least(0, "warmup")
        late = isinstance(self.warmup, float) and self.warmup >= 1
        self._require("warmup", not late, "steps (an integer) or a share below 1")
        self._require("factor", 0 < self.factor <= 1, "above 0 and at most 1")
        self._require_share("final")


@dataclass(frozen=True)
class EmaSection(_Checked):
    """The moving average of the weights, which is what a run exports.

    Attributes:
        decay: share that stays per step; 0: no average, the weights themselves.
        warmup: whether the decay begins small, at (1 + t) / (10 + t) in step t.
    """

    _where = "ema"

    decay: float = 0.999
    warmup: bool = True

    def __post_init__(self) -> None:
        self._require("decay", 0 <= self.decay < 1, "in [0, 1)")


@dataclass(frozen=True)
class CheckpointSection(_Checked):
    """Checkpoints: a new one every ``every`` steps and at the end; the last ``keep`` stay."""

    _where = "checkpoint"

    every: int = 500
    keep: int = 2

    def __post_init__(self) -> None:
        self._require_at_least(1, "every", "keep")


@dataclass(frozen=True)
class LogSection(_Checked):
    """What is reported, in steps.

    Attributes:
        every: a line of ``log.jsonl``, the means since the last one.
        pictures: validation, a contact sheet and the curves; 0: never.
        tensorboard: also for TensorBoard, in ``output/tensorboard``.
        wandb: also for Weights & Biases, under this project's name.
    """

    _where = "log"

    every: int = 50
    pictures: int = 1000
    tensorboard: bool = False
    wandb: str | None = None

    def __post_init__(self) -> None:
        self._require_at_least(1, "every")
        self._require_at_least(0, "pictures")
