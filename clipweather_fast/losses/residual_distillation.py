"""CLIP soft residual distillation: what weather does to CLIP's features, taught to the residuals.

The teacher's features of a picture with weather, minus those of the same picture without, say where
the weather is and what it is like. The student's residual maps are to say the same.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast._autocast import no_autocast
from clipweather_fast.losses._channel_pool import ChannelPool
from clipweather_fast.losses._normalized_l1 import (
    EPSILON,
    Normalization,
    lengths,
    normalized_l1,
    picture_lengths,
    pieces,
)
from clipweather_fast.losses._pictures import wide
from clipweather_fast.models._encoder import ResidualPlace

__all__ = ["STAGE_MAP", "residual_distillation", "residual_projections"]

Blocks = Literal["all", "last"]
Intra = Literal["resize", "next"]
Target = Literal["residual", "weather"]

#: Which of the teacher's maps belongs to stages 1 to 4: the stem's, layer 2's, 3's and 4's.
STAGE_MAP = (0, 1, 2, 3)
CHOICES = {
    "normalize": ("channels", "sample", "none"),
    "blocks": ("all", "last"),
    "intra": ("resize", "next"),
    "target": ("residual", "weather"),
}


@dataclass(frozen=True)
class Pair:
    """Residual map number ``student`` of a stage and the teacher's map that teaches it."""

    stage: int
    student: int
    teacher: int


def residual_distillation(
    residuals: Sequence[Tensor],
    places: Sequence[ResidualPlace],
    weather_features: Sequence[Tensor],
    clean_features: Sequence[Tensor] | None,
    normalize: Normalization = "channels",
    blocks: Blocks = "all",
    intra: Intra = "resize",
    target: Target = "residual",
    match: Literal["pool"] | Sequence[nn.Module] = "pool",
    stage_map: Sequence[int | None] = STAGE_MAP,
) -> Tensor:
    r"""Normalised L1 distance of residual maps from the teacher's residual features.

    .. math:: T_i = F_i^w - F_i^c, \qquad
        L_i = \frac{1}{N_i} \sum_{j=1}^{N_i}
        \| \mathrm{Norm}(R_{ij}) - \mathrm{Norm}(\mathrm{Pool}(T_i)) \|_1, \qquad
        L = \sum_{i=1}^{4} L_i

    The norm is the mean over all values. Pool is adaptive average pooling: of the teacher to the
    student's height and width, and of whichever has more channels to the channels of the other.

    Args:
        residuals: R, maps (N, C, H, W) as a network gives with ``return_residuals``, in any memory
            format; channels-last is read as it is.
        places: stage, kind and channels of each, from ``network.residual_places()``.
        weather_features: Fʷ, the teacher's maps of the pictures with weather; see
            :meth:`clipweather_fast.clip.Teacher.pair`. Inference tensors will do.
        clean_features: Fᶜ, of the same pictures without; may be None if ``target`` is
            ``"weather"``.
        normalize: Norm: ``"channels"``: L2 over the channels at each place; ``"sample"``: L2 over a
            picture's channels and places, which keeps where the weather is; ``"none"``.
        blocks: ``"all"``: every block of a stage; ``"last"``: its last main block.
        intra: what teaches the intra-patch block of stage i, which works at the next stage's
            stride: ``"resize"``: T of stage i, pooled; ``"next"``: T of stage i + 1, which has its
            size. It counts among the blocks of stage i.
        target: ``"residual"``: T as above; ``"weather"``: T = Fʷ, nothing to be residual to.
        match: ``"pool"``, or a module per map that is taught, in their order, which takes it to the
            teacher's channels, as :func:`residual_projections` makes them. They learn with the
            student.
        stage_map: the number of the teacher's map for stages 1 to 4; None leaves a stage out.

    Returns:
        A scalar, at least float32.

    Gradients:
        For the residuals (and the modules of ``match``) alone, once differentiable. The sign of
        zero is zero.

    Numerics:
        At least float32, under autocast too; channels are pooled by a matrix product, which is in
        TF32 where that is switched on. Sums have a fixed order, so results repeat.

    Reference:
        Eqs. 6 and 7 of arXiv 2306.09008 (CLIP-SRD).

    Raises:
        ValueError: if the maps and places do not go together or a choice is none of the above.
    """
    for name, choice in (("normalize", normalize), ("blocks", blocks), ("intra", intra)):
        _check_choice(name, choice)
    _check_choice("target", target)
    _check_student(residuals, places)
    pairs = list(paired(places, blocks, intra, stage_map))
    weather, clean = _checked_teacher(weather_features, clean_features, target, residuals, pairs)
    students = _students(residuals, pairs, match)
    blocks_of = {stage: sum(pair.stage == stage for pair in pairs) for stage in range(1, 5)}
    targets: dict[tuple[int, ...], Tensor] = {}
    losses = []
    for pair, student in zip(pairs, students, strict=True):
        _, c, h, w = student.shape
        expected = weather[pair.teacher].shape[1]
        if match != "pool" and c != expected:
            raise ValueError(
                f"residual_distillation: the module of residual {pair.student} must give the "
                f"teacher's {expected} channels, gives {c}; make it with residual_projections"
            )
        key = (pair.teacher, c, h, w)
        if key not in targets:
            other = None if clean is None else clean[pair.teacher]
            targets[key] = _target(weather[pair.teacher], other, student, normalize)
        loss = normalized_l1(student, targets[key], normalize)
        losses.append(loss / blocks_of[pair.stage])
    return torch.stack(losses).sum()


def residual_projections(
    places: Sequence[ResidualPlace],
    teacher_channels: Sequence[int],
    blocks: Blocks = "all",
    intra: Intra = "resize",
    stage_map: Sequence[int | None] = STAGE_MAP,
) -> nn.ModuleList:
    """1×1 convolutions for ``match``: from each taught map's channels to its teacher's.

    Args:
        places: as for :func:`residual_distillation`, like ``blocks``, ``intra`` and ``stage_map``.
        teacher_channels: of the teacher's maps, as ``Teacher.channels``.

    Raises:
        ValueError: for a choice that is not allowed or a map that the teacher does not have.
    """
    _check_choice("blocks", blocks)
    _check_choice("intra", intra)
    modules = []
    for pair in paired(places, blocks, intra, stage_map):
        if not 0 <= pair.teacher < len(teacher_channels):
            raise ValueError(_no_such_map(pair, len(teacher_channels)))
        modules.append(
            nn.Conv2d(places[pair.student].channels, teacher_channels[pair.teacher], kernel_size=1)
        )
    return nn.ModuleList(modules)


def paired(
    places: Sequence[ResidualPlace], blocks: Blocks, intra: Intra, stage_map: Sequence[int | None]
) -> Iterator[Pair]:
    """The residual maps that are taught, in their order, and what teaches each.

    Raises:
        ValueError: if nothing is taught, or the stage map does not have four entries.
    """
    if len(stage_map) != 4:
        raise ValueError(
            f"residual_distillation: stage_map must have an entry for each of 4 stages, "
            f"got {tuple(stage_map)!r}"
        )
    last = {place.stage: i for i, place in enumerate(places) if not place.intra_patch}
    taught = False
    for i, place in enumerate(places):
        if blocks == "last" and i != last.get(place.stage):
            continue
        ahead = place.intra_patch and intra == "next"
        teacher = stage_map[place.stage if ahead else place.stage - 1]
        if teacher is not None:
            taught = True
            yield Pair(place.stage, i, teacher)
    if not taught:
        raise ValueError(
            "residual_distillation: there is no residual map to teach; the network must have "
            "num_kernels > 0, and stage_map a stage of it"
        )


def _students(
    residuals: Sequence[Tensor],
    pairs: Sequence[Pair],
    match: Literal["pool"] | Sequence[nn.Module],
) -> Iterator[Tensor]:
    """The taught maps, through their modules where there are any."""
    if isinstance(match, str):
        if match != "pool":
            raise ValueError(
                f"residual_distillation: match must be 'pool' or a module per map, got {match!r}"
            )
        yield from (residuals[pair.student] for pair in pairs)
        return
    if len(match) != len(pairs):
        raise ValueError(
            f"residual_distillation: match must have a module for each of {len(pairs)} maps, "
            f"got {len(match)}; make them with residual_projections and the same choices"
        )
    for pair, module in zip(pairs, match, strict=True):
        yield module(residuals[pair.student])


@torch.no_grad()
def _target(
    weather: Tensor, clean: Tensor | None, student: Tensor, normalize: Normalization
) -> Tensor:
    """Norm(Pool(T)) with the student's height, width and memory format, never more channels."""
    n, c, h, w = student.shape
    channels = min(c, weather.shape[1])
    layout = torch.channels_last if student.stride(1) == 1 else torch.contiguous_format
    dtype = torch.float64 if student.dtype == torch.float64 else torch.float32
    target = torch.empty(
        (n, channels, h, w), dtype=dtype, device=student.device, memory_format=layout
    )
    with no_autocast(student.device.type):
        same = weather.shape[2:] == (h, w)
        pool = ChannelPool(weather.shape[1], channels, target)
        # Where rows are pooled as well, a piece is made of whole pictures.
        for index in pieces(weather, whole=not same):
            part = wide(weather[index]).to(dtype)
            if clean is not None:
                part = part - clean[index]
            part = part.contiguous(memory_format=layout)
            if not same:
                part = F.adaptive_avg_pool2d(part, (h, w))
            part = pool(part)
            length = lengths(part, normalize, None)
            if length is not None:
                part = part / length.clamp_min_(EPSILON)
            target[index if same else index[0]] = part
        pictures = picture_lengths(target, ChannelPool(channels, channels, target), normalize)
        if pictures is not None:
            target.div_(pictures.clamp_min_(EPSILON))
    return target


def _check_choice(name: str, choice: object) -> None:
    if choice not in CHOICES[name]:
        raise ValueError(
            f"residual_distillation: {name} must be one of {CHOICES[name]}, got {choice!r}"
        )


def _check_student(residuals: Sequence[Tensor], places: Sequence[ResidualPlace]) -> None:
    if len(residuals) != len(places):
        raise ValueError(
            f"residual_distillation: residuals and places must be as many, "
            f"got {len(residuals)} and {len(places)}"
        )
    for i, (residual, place) in enumerate(zip(residuals, places, strict=True)):
        if residual.dim() != 4 or residual.shape[1] != place.channels or not residual.numel():
            raise ValueError(
                f"residual_distillation: residual {i} must be (N, {place.channels}, H, W) and not "
                f"empty, as its place says, got {tuple(residual.shape)}"
            )


def _checked_teacher(
    weather: Sequence[Tensor],
    clean: Sequence[Tensor] | None,
    target: Target,
    residuals: Sequence[Tensor],
    pairs: Sequence[Pair],
) -> tuple[Sequence[Tensor], Sequence[Tensor] | None]:
    """The teacher's maps, those of clean pictures only where they count."""
    if target == "weather":
        clean = None
    elif clean is None:
        raise ValueError(
            "residual_distillation: clean_features may be None only if target is 'weather'"
        )
    for pair in pairs:
        if not 0 <= pair.teacher < len(weather):
            raise ValueError(_no_such_map(pair, len(weather)))
        n, map_w = residuals[pair.student].shape[0], weather[pair.teacher]
        map_c = map_w if clean is None else clean[pair.teacher]
        if map_w.dim() != 4 or map_w.shape[0] != n or map_c.shape != map_w.shape:
            raise ValueError(
                f"residual_distillation: the teacher's maps must both be (N, C, H, W) with N = {n},"
                f" got {tuple(map_w.shape)} and {tuple(map_c.shape)} for map {pair.teacher}"
            )
    return weather, clean


def _no_such_map(pair: Pair, count: int) -> str:
    return (
        f"residual_distillation: stage_map names the teacher's map {pair.teacher} for stage "
        f"{pair.stage}, but it has {count}"
    )
