"""``clipweather train``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipweather_fast.cli._progress import shown

if TYPE_CHECKING:
    from clipweather_fast.training import TrainingConfig

__all__ = ["train"]


def train(
    config: Annotated[
        Path,
        typer.Argument(metavar="CONFIG", help="A YAML file, as in configs/.", show_default=False),
    ],
    changes: Annotated[
        list[str] | None,
        typer.Argument(metavar="SECTION.KEY=VALUE", help="Settings to change.", show_default=False),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the settings, numbers of parameters, memory and the time of a step, found "
            "by a few steps on noise, and train nothing.",
        ),
    ] = False,
) -> None:
    """Train a network, or go on with a run that was stopped.

    `clipweather train configs/paper.yaml data.pairs=allweather run.output=runs/paper` writes
    checkpoints, a log, contact sheets and curves into the output folder, and the averaged weights
    into its folder `model`, which `clipweather restore -n` takes. The same command goes on with a
    run that was interrupted, exactly where its last checkpoint is; SIGTERM and Ctrl-C save and
    stop (exit code 128 + the signal's number).

    Several processes: `torchrun --nproc-per-node 4 -m clipweather_fast.cli train ...`, or
    `accelerate launch`.
    """
    from clipweather_fast import training

    try:
        settings = training.read(config, changes or [])
    except (OSError, ValueError) as error:
        raise typer.BadParameter(shown(error), param_hint="'CONFIG'") from None
    code = 0
    try:
        if dry_run:
            _dry_run(settings)
        else:
            code = _fit(settings)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # The words may have several lines; each is printable.
        for line in str(error).splitlines():
            typer.echo(f"clipweather train: {shown(line)}", err=True)
        raise typer.Exit(1) from None
    raise typer.Exit(code)


def _fit(settings: TrainingConfig) -> int:
    from clipweather_fast.cli._training_progress import TrainingDisplay
    from clipweather_fast.training.build import trainer_of

    display = TrainingDisplay()
    trainer = trainer_of(settings, display)
    try:
        outcome = trainer.fit()
    finally:
        trainer.processes.close()
    if not outcome.finished:
        display.say(f"stopped after step {outcome.step}; the same command goes on")
        return 128 + outcome.signal if outcome.signal else 1
    if trainer.processes.main:
        display.say(f"the network is in {shown(trainer.output / 'model')}")
    return 0


def _dry_run(settings: TrainingConfig) -> None:
    from clipweather_fast.clip import EncoderUnavailable
    from clipweather_fast.training import RestorationTask, config
    from clipweather_fast.training.estimate import estimate

    typer.echo(config.written(settings), nl=False)
    try:
        task = RestorationTask(settings)
    except EncoderUnavailable as error:
        typer.echo(f"note: {shown(error)}; random weights stand in for the estimate", err=True)
        task = RestorationTask(settings.with_random_weights())
    typer.echo(estimate(task, settings))
