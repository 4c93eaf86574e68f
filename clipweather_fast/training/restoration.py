"""The task of this package: restore pictures taken in bad weather."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast import losses
from clipweather_fast.clip import TextFeatures
from clipweather_fast.data import WEATHERS, cutmix, to_unit_range
from clipweather_fast.data.synthesis import degrade
from clipweather_fast.models import ClipWeatherConfig, RestorationNetwork, create_model
from clipweather_fast.training.config import TrainingConfig
from clipweather_fast.training.sections import DistillationSection
from clipweather_fast.training.student import Student
from clipweather_fast.training.task import Batch, Examined, Progress, seed_of

if TYPE_CHECKING:
    from clipweather_fast.clip import Teacher
    from clipweather_fast.clip.imagenet_teacher import ImageNetTeacher

__all__ = ["RestorationTask"]


class RestorationTask:
    r"""Restoration by the terms of eq. 11 of arXiv 2306.09008, each with its weight.

    .. math:: L = w_1 L_{sl1} + w_2 L_{per} + w_3 L_{ssim} + w_4 L_{psnr} + w_5 L_{txt}
        + w_6 [\mathrm{epoch} \ge T] L_{srd}

    Batches hold "truth" (N, 3, H, W) and "weather" (N,), and either "image", the same pictures with
    weather, or "seed" (N,), by which weather is put on them here, on the device.

    Args:
        config: model, losses and all that belongs to them.

    Attributes:
        student: a :class:`Student`.
        frozen: ``prior``, ``teacher`` and ``perceptual``, those that are needed.

    Raises:
        clipweather_fast.clip.EncoderUnavailable: a frozen network's package or weights are
            missing; the message says what to do.
        ValueError: terms that the network has nothing for.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        torch.manual_seed(config.run.seed)
        model = config.model
        network = create_model(
            model.name, pretrained=model.weights or False, **model.network_changes()
        ).train()
        self.network_config = network.config
        self.frozen: dict[str, nn.Module] = {}
        self._add_prior()
        if config.losses.perceptual:
            section = config.losses
            self.frozen["perceptual"] = losses.PerceptualLoss(
                section.perceptual_kind, section.perceptual_weights
            )
        self.text = self._text_features() if config.text.weight else None
        self.student: nn.Module = self._student(network)

    def _add_prior(self) -> None:
        found = self.network_config
        if not isinstance(found, ClipWeatherConfig) or not found.uses_prior or found.learns_prior:
            return
        from clipweather_fast.clip import build_prior_encoder

        encoder = build_prior_encoder(found.prior_encoder, found.prior_weights)
        if encoder.dim != found.prior_dim:
            raise ValueError(
                f"configuration: the vectors of model.prior_encoder {found.prior_encoder!r} have "
                f"length {encoder.dim}, but model.prior_dim is {found.prior_dim}"
            )
        self.frozen["prior"] = encoder

    def _text_features(self) -> TextFeatures:
        from clipweather_fast.clip import build_text_encoder, text_features

        section, found = self.config.text, self.network_config
        if not isinstance(found, ClipWeatherConfig) or not found.uses_prior:
            raise ValueError("configuration: text.weight must be 0 for a network without a prior")
        if section.features is not None:
            text = TextFeatures.load(section.features)
        else:
            text = text_features(build_text_encoder(section.encoder, section.encoder_weights))
        if text.words != WEATHERS or text.features.shape[1] != found.prior_width:
            raise ValueError(
                f"configuration: the text features must have the words {', '.join(WEATHERS)} and "
                f"the length model.prior_width = {found.prior_width}, got "
                f"{', '.join(text.words)} and {text.features.shape[1]}"
            )
        return text

    def _student(self, network: RestorationNetwork) -> Student:
        section = self.config.distillation
        if not section.weight:
            return Student(network)
        places = network.residual_places()
        if not places:
            raise ValueError(
                "configuration: distillation.weight must be 0 for a network without residuals"
            )
        teacher = _teacher(section)
        self.frozen["teacher"] = teacher
        choices: dict[str, Any] = {
            name: getattr(section, name) for name in ("normalize", "blocks", "intra", "target")
        }
        projections = None
        if section.match == "project":
            projections = losses.residual_projections(
                places, teacher.channels, choices["blocks"], choices["intra"]
            )
        return Student(network, choices, projections)

    # ---- the loss --------------------------------------------------------------------------

    def parts(self, batch: Batch, progress: Progress) -> dict[str, Tensor]:
        """The weighted terms, those with a weight."""
        config = self.config
        batch = self._with_weather(batch, config.synthesis.clear)
        if config.data.cutmix or self.text is not None:
            batch = cutmix(batch, config.data.cutmix, config.data.cutmix_alpha, progress.seed)
        image, truth = batch["image"], batch["truth"]
        features = self._features(image, truth) if self._distils(progress) else None
        found = self.student(image, self._prior(image), features, self.text is not None)
        parts = self._of_pictures(found["restored"].float(), truth)
        if self.text is not None:
            text, labels = self.text.features.to(image.device), batch["labels"]
            loss = losses.text_cross_entropy(
                found["projected"], text, labels.to(image.device), config.text.temperature
            )
            parts["text"] = config.text.weight * loss
        if features is not None:
            parts["distillation"] = config.distillation.weight * found["distillation"]
        return parts

    def _of_pictures(self, y: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """The terms that compare the restored picture with the true one."""
        section = self.config.losses
        parts: dict[str, Tensor] = {}
        if section.smooth_l1:
            parts["smooth_l1"] = section.smooth_l1 * losses.smooth_l1(y, truth)
        if section.perceptual:
            low = self.config.run.precision == "bfloat16"
            with torch.autocast(y.device.type, torch.bfloat16, enabled=low):
                parts["perceptual"] = section.perceptual * self.frozen["perceptual"](y, truth)
        if section.ssim:
            parts["ssim"] = section.ssim * losses.ssim_loss(y, truth)
        if section.psnr:
            soft = section.psnr_softening
            parts["psnr"] = section.psnr * losses.psnr_loss(y, truth, softening=soft)
        return parts

    def _distils(self, progress: Progress) -> bool:
        section = self.config.distillation
        if not section.weight:
            return False
        start = section.start
        begins = start if isinstance(start, int) else start * progress.epochs
        return progress.epoch >= begins

    def _prior(self, image: Tensor) -> Tensor | None:
        """Of the frozen encoder, if that is where the network's prior comes from."""
        encoder = self.frozen.get("prior")
        if encoder is None:
            return None
        with torch.inference_mode():
            prior = cast(Tensor, encoder(image))
        # An inference tensor cannot be saved for the gradient of the layer after it; a copy can.
        return prior.clone()

    def _features(self, image: Tensor, truth: Tensor) -> tuple[list[Tensor], list[Tensor] | None]:
        teacher = cast(Any, self.frozen["teacher"])
        with torch.inference_mode():
            if self.config.distillation.target == "weather":
                return teacher(image), None
            found: tuple[list[Tensor], list[Tensor]] = teacher.pair(image, truth)
            return found

    # ---- pictures --------------------------------------------------------------------------

    def _with_weather(self, batch: Batch, clear: float) -> Batch:
        """The batch on the student's device, with "image" and "truth" in float32."""
        device = next(self.student.parameters()).device
        weather, seeds = batch["weather"], batch.get("seed")
        pictures: Batch = {name: batch[name] for name in ("image", "truth") if name in batch}
        made: Batch = to_unit_range(pictures, device)
        if seeds is not None:
            section = self.config.synthesis
            low, high = section.strength
            strengths = [low + (high - low) * _share("strength", seed) for seed in seeds.tolist()]
            stays = [_share("clear", seed) < clear for seed in seeds.tolist()]
            weather = weather.masked_fill(torch.tensor(stays), -1)
            # Read on the CPU: the seeds decide what is drawn before anything is computed.
            made["image"] = degrade(
                made["truth"], weather, seeds, strength=strengths, scale=section.scale
            )
        return {**made, "weather": weather}

    def examine(self, batch: Batch) -> Examined:
        """PSNR in dB and SSIM of the restored pictures, the PSNR before, and by weather."""
        batch = self._with_weather(batch, 0.0)
        image, truth = batch["image"], batch["truth"]
        found = self.student(image, self._prior(image))
        y = found["restored"].float().clamp(0, 1)
        psnr = losses.psnr(y, truth, reduction="none")
        measures = {
            "psnr": psnr,
            "psnr before": losses.psnr(image, truth, reduction="none"),
            "ssim": losses.ssim(y, truth, reduction="none"),
        }
        weather = batch["weather"].to(y.device)
        for number, name in enumerate(WEATHERS):
            if name:
                measures[f"psnr {name}"] = psnr.where(weather == number, torch.nan)
        return Examined(measures, {"input": image, "restored": y, "truth": truth})

    def example(self, count: int) -> Batch:
        """Noise with and without weather."""
        side = self.config.data.crop
        generator = torch.Generator().manual_seed(self.config.run.seed)
        image, truth = torch.rand(2, count, 3, side, side, generator=generator)
        if not self.config.data.clean:
            return {"image": image, "truth": truth, "weather": torch.arange(count) % 3}
        return {"truth": truth, "seed": torch.arange(count), "weather": torch.arange(count) % 3}

    def export(self, state: Mapping[str, Tensor], folder: Path) -> None:
        """A folder as ``save_pretrained`` writes it, with the text features if there are any."""
        with torch.device("meta"):
            network = create_model(self.config.model.name, **self.config.model.network_changes())
        own = {
            name.removeprefix("network."): tensor
            for name, tensor in state.items()
            if name.startswith("network.")
        }
        network.load_state_dict(own, assign=True)
        network.save_pretrained(folder)
        if self.text is not None:
            self.text.save(folder / "text_features.safetensors")


def _teacher(section: DistillationSection) -> Teacher | ImageNetTeacher:
    from clipweather_fast.clip import Teacher
    from clipweather_fast.clip.imagenet_teacher import ImageNetTeacher

    family, _, model = section.teacher.partition(":")
    if family == "imagenet" and model:
        return ImageNetTeacher(model, section.teacher_weights)
    return Teacher(section.teacher_weights, section.teacher)


def _share(purpose: str, seed: int) -> float:
    """A number in [0, 1) that a sample's seed decides."""
    return seed_of(purpose, seed) / 2**63
