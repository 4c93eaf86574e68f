"""accelerate(): the fused blocks, swapped into a network that exists."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from torch import nn

from clipweather_fast.models._accelerated import Accelerated, AcceleratedMlp, accelerated_class
from clipweather_fast.models._proof import why_not_equal
from clipweather_fast.models._structure import recognise
from clipweather_fast.modules import ConvMlp, EfficientAttention

__all__ = ["AccelerationReport", "Left", "Swapped", "accelerate"]


@dataclass(frozen=True)
class Swapped:
    """A block that now computes as ``became`` (``"ConvMlp"`` or ``"EfficientAttention"``)."""

    name: str
    class_name: str
    became: str


@dataclass(frozen=True)
class Left:
    """A block that looks like one of ours and was left as it is, and why."""

    name: str
    class_name: str
    reason: str


@dataclass(frozen=True)
class AccelerationReport:
    """What :func:`accelerate` did. ``str()`` says it in a few lines.

    ``already`` counts the blocks that were fast before the call.
    """

    swapped: tuple[Swapped, ...]
    left: tuple[Left, ...]
    already: int = 0

    def __str__(self) -> str:
        if not (self.swapped or self.left or self.already):
            return "accelerate: found no block of a known structure; nothing was changed"
        counts = f"swapped {len(self.swapped)}, left {len(self.left)}"
        lines = [f"accelerate: {counts}" + (f", {self.already} before" if self.already else "")]
        swaps: dict[tuple[str, str], list[str]] = defaultdict(list)
        for block in self.swapped:
            swaps[block.class_name, block.became].append(block.name)
        for (class_name, became), names in swaps.items():
            lines.append(f"  {len(names)} x {class_name} -> {became}: {_listed(names)}")
        reasons: dict[tuple[str, str], list[str]] = defaultdict(list)
        for rest in self.left:
            reasons[rest.class_name, rest.reason].append(rest.name)
        for (class_name, reason), names in reasons.items():
            lines.append(f"  left {len(names)} x {class_name}: {reason}: {_listed(names)}")
        return "\n".join(lines)


def accelerate(model: nn.Module) -> AccelerationReport:
    """Makes the attention and feed-forward blocks of an existing network fast, in place.

    Recognised by structure: the blocks of timm's ``pvt_v2_*``, Hugging Face's ``SegformerModel``
    and ``PvtV2Model``, TransWeather, PVTv2 and SegFormer's first code, and whatever else is built
    alike. A block is swapped only after its original and its fused forward agreed, values and
    gradients, on random tokens in float64. Parameters, state-dict keys, hooks, attributes and modes
    stay; ``isinstance`` with the original class stays true. Where a call asks for something the
    fused forward does not do (dropout at work in training, attention probabilities), the block
    takes its original forward.

    Args:
        model: any module; wrappers (``DataParallel``, ``torch.compile``) are looked into.

    Returns:
        The report: ``swapped`` and, with reasons, ``left``. A second call swaps nothing new.

    Raises:
        TypeError: if ``model`` is not an ``nn.Module``.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"accelerate: model must be an nn.Module, got {type(model).__name__}")
    swapped, left, already = [], [], 0
    for name, module in list(model.named_modules()):
        if isinstance(module, (Accelerated, ConvMlp, EfficientAttention)):
            already += 1
            continue
        class_name = type(module).__name__
        roles = recognise(module)
        if roles is None:
            continue
        if isinstance(roles, str):
            left.append(Left(name, class_name, roles))
            continue
        fast = accelerated_class(type(module), roles)
        reason = why_not_equal(module, fast, roles)
        if reason is not None:
            left.append(Left(name, class_name, reason))
            continue
        module.__class__ = fast
        became = ConvMlp if issubclass(fast, AcceleratedMlp) else EfficientAttention
        swapped.append(Swapped(name, class_name, became.__name__))
    return AccelerationReport(tuple(swapped), tuple(left), already)


def _listed(names: list[str]) -> str:
    shown = [name or "(the model itself)" for name in names[:3]]
    return ", ".join(shown) + (f", and {len(names) - 3} more" if len(names) > 3 else "")
