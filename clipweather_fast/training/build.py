"""From a configuration to a trainer of the restoration task."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from clipweather_fast.data import CleanDataset, Pair, PairDataset, find_pairs
from clipweather_fast.training.config import TrainingConfig
from clipweather_fast.training.feed import Samples
from clipweather_fast.training.restoration import RestorationTask
from clipweather_fast.training.trainer import Trainer
from clipweather_fast.training.watch import Watch

__all__ = ["held_out_of", "samples_of", "trainer_of"]


def trainer_of(config: TrainingConfig, watch: Watch | None = None) -> Trainer:
    """A trainer, ready for :meth:`Trainer.fit`.

    Raises:
        ValueError: for a configuration without data, or that does not fit them.
        clipweather_fast.clip.EncoderUnavailable: as :class:`RestorationTask`.
    """
    samples = samples_of(config)
    return Trainer(RestorationTask(config), config, samples, held_out_of(config), watch)


def samples_of(config: TrainingConfig) -> Samples:
    """What the run learns from."""
    data, seed = config.data, config.run.seed
    if data.pairs is not None:
        pairs = find_pairs(data.pairs, data.layout, split=data.split)
        return PairDataset(pairs, data.crop, data.flips, seed, dtype=torch.uint8)
    if data.clean:
        return CleanDataset(
            data.clean,
            data.crop,
            seed,
            data.samples_per_epoch,
            weathers=data.weathers,
            flips=data.flips,
            shrink=data.shrink,
            turns=data.turns,
            recolor=data.recolor,
            dtype=torch.uint8,
        )
    raise ValueError(
        "configuration: there is nothing to learn from; give data.pairs=FOLDER of pairs, or "
        "data.clean=[FOLDER, ...] of clean photographs"
    )


def held_out_of(config: TrainingConfig) -> Samples | None:
    """What the run looks at now and then: crops of at most ``validation_pictures`` pictures."""
    data, count = config.data, config.data.validation_pictures
    if data.validation is not None:
        pairs = _spread(find_pairs(data.validation, "auto"), count)
        return PairDataset(pairs, data.crop, False, 0, dtype=torch.uint8)
    if data.validation_clean:
        return CleanDataset(
            data.validation_clean,
            data.crop,
            0,
            count,
            weathers=data.weathers,
            flips=False,
            shrink=data.shrink,
            dtype=torch.uint8,
        )
    return None


def _spread(items: Sequence[Pair], count: int) -> list[Pair]:
    """At most ``count`` of them, from their beginning to their end."""
    chosen = min(count, len(items))
    return [items[i * len(items) // chosen] for i in range(chosen)]
