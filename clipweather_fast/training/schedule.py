"""The learning rate as a function of the step, so that resuming needs no state."""

from __future__ import annotations

import math

from clipweather_fast.training.sections import ScheduleSection

__all__ = ["factor", "share_or_count"]


def factor(schedule: ScheduleSection, step: int, steps: int, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by in step ``step`` = 0 … ``steps`` − 1.

    ``step``: factor^⌊epoch / every⌋, the epochs counted from 0; ``cosine``: from 1 to ``final``
    along half a cosine over what remains after the warm-up. During the warm-up of w steps these
    are multiplied by (step + 1) / w.
    """
    warmup = share_or_count(schedule.warmup, steps)
    if schedule.kind == "step":
        value = float(schedule.factor ** (step // steps_per_epoch // schedule.every))
    elif schedule.kind == "cosine":
        # The last step has a factor a little above ``final``: none is computed with less.
        done = max(0, step - warmup) / max(1, steps - warmup)
        value = schedule.final + (1 - schedule.final) * (1 + math.cos(math.pi * done)) / 2
    else:
        value = 1.0
    return value * min(1.0, (step + 1) / warmup) if warmup else value


def share_or_count(value: int | float, whole: int) -> int:
    """An integer as it is, a share of ``whole`` rounded to one."""
    return value if isinstance(value, int) else round(value * whole)
