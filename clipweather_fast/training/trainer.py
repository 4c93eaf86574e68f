"""The training loop. What is trained, and on what, is the task's and the data's business."""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipweather_fast.restore.aside import written_aside
from clipweather_fast.training.adam import Adam, AdamW
from clipweather_fast.training.checkpoint import Checkpoints, occupied
from clipweather_fast.training.config import TrainingConfig, written
from clipweather_fast.training.ema import Ema
from clipweather_fast.training.feed import Feed, Samples
from clipweather_fast.training.journal import Journal
from clipweather_fast.training.processes import Processes
from clipweather_fast.training.schedule import factor
from clipweather_fast.training.state import captured, differences, restored
from clipweather_fast.training.task import Batch, Progress, Task, seed_of
from clipweather_fast.training.watch import Meter, Silent, Watch, memory_mib

__all__ = ["NonFiniteLoss", "Outcome", "Trainer"]

#: Seconds within which signals are copies of one.
SAME_REQUEST = 3.0


class NonFiniteLoss(RuntimeError):
    """The loss or its gradient is not finite; the message names the file with the batch."""


@dataclass(frozen=True)
class Outcome:
    """How a run ended: after which step, whether that was the last, and which signal stopped it."""

    step: int
    finished: bool
    signal: int | None = None


class Trainer:
    """Trains a task's student.

    Every random choice is a function of the seed and the step, and every state is in a checkpoint:
    a run that was interrupted and goes on computes what it would have computed without.

    Args:
        task: the student, its teachers and its loss.
        config: the run.
        samples: what to learn from.
        held_out: what to look at now and then; None: nothing.
        watch: is told what happens.

    Raises:
        ValueError: for a configuration that does not fit the data, or a run in ``run.output`` that
            cannot be continued.
    """

    def __init__(
        self,
        task: Task,
        config: TrainingConfig,
        samples: Samples,
        held_out: Samples | None = None,
        watch: Watch | None = None,
    ) -> None:
        run = config.run
        self.task, self.config, self.held_out = task, config, held_out
        self.processes = processes = Processes(run)
        self.watch: Watch = watch if watch is not None and processes.main else Silent()
        self.feed = Feed(
            samples,
            config.data,
            seed=run.seed,
            accumulate=run.accumulate,
            rank=processes.rank,
            world=processes.world,
        )
        self.steps = run.epochs * self.feed.steps_per_epoch
        self.step = 0
        self.output = Path(run.output)
        self.checkpoints = Checkpoints(self.output / "checkpoints", config.checkpoint.keep)
        for module in task.frozen.values():
            module.to(processes.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
            module.requires_grad_(False).eval()
        task.student = processes.wrapped(task.student)
        self.student = task.student
        self.parameters = [p for p in self.student.parameters() if p.requires_grad]
        self.optimizer = self._optimizer()
        self.ema = Ema(processes.bare(self.student), config.ema)
        self.meter = Meter()

    def _optimizer(self) -> torch.optim.Optimizer:
        section = self.config.optimizer
        kind = AdamW if section.weight_decay else Adam
        first, second = section.betas
        return kind(
            self.processes.groups(self.parameters),
            lr=section.lr,
            betas=(first, second),
            eps=section.eps,
            weight_decay=section.weight_decay,
            fused=not self.processes.sharded,
        )

    # ---- the loop --------------------------------------------------------------------------

    def fit(self) -> Outcome:
        """Trains to the end, or until SIGTERM or SIGINT, which save and stop.

        Raises:
            NonFiniteLoss: see there; the last checkpoint is as it was.
            OSError: if the last checkpoint cannot be written.
            ValueError: if another process trains in ``run.output``, or a run there cannot go on.
        """
        with ExitStack() as stack:
            if self.processes.main:
                self.output.mkdir(parents=True, exist_ok=True)
                stack.enter_context(occupied(self.output))
            return self._fit()

    def _fit(self) -> Outcome:
        self._resume()
        begin = self.step
        journal = self._journal() if self.processes.main else None
        with self._signals() as caught:
            self.watch.began(self.step, self.steps)
            try:
                while self.step < self.steps:
                    epoch, done = divmod(self.step, self.feed.steps_per_epoch)
                    clock = time.perf_counter()
                    for micro_batches in self.feed.steps(epoch, done):
                        stop = self._train(micro_batches, epoch, caught, clock)
                        self._report(journal)
                        if stop and self.step < self.steps:
                            self._save(must=True)
                            return Outcome(self.step, False, next(iter(caught), None))
                        if self.step % self.config.checkpoint.every == 0 and self.step < self.steps:
                            self._save(must=False)
                        clock = time.perf_counter()
                if self.step > begin:
                    self._save(must=True)
                return Outcome(self.step, True)
            finally:
                self.watch.ended()
                if journal is not None:
                    journal.close()

    def _train(
        self, micro_batches: list[Batch], epoch: int, caught: list[int], clock: float
    ) -> bool:
        """One step of the optimizer, begun at ``clock`` with the reading of its pictures.

        Returns whether any process caught a signal to stop.
        """
        run = self.config.run
        self.student.train()
        lr = self.config.optimizer.lr * factor(
            self.config.schedule, self.step, self.steps, self.feed.steps_per_epoch
        )
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        sums: dict[str, Tensor] = {}
        for i, batch in enumerate(micro_batches):
            seed = seed_of("step", run.seed, self.step, i, self.processes.rank)
            progress = Progress(self.step, self.steps, epoch, run.epochs, seed)
            torch.manual_seed(seed)
            with self.processes.synchronised(self.student, last=i == len(micro_batches) - 1):
                parts = self.task.parts(batch, progress)
                total = torch.stack(list(parts.values())).sum() / len(micro_batches)
                self.processes.accelerator.backward(total)
            for name, part in parts.items():
                sums[name] = sums.get(name, 0.0) + part.detach() / len(micro_batches)
        # One exchange says the losses of all processes and whether any was asked to stop.
        flag = torch.tensor(float(bool(caught)), device=self.processes.device)
        *values, stopped = self.processes.mean(torch.stack([*map(_scalar, sums.values()), flag]))
        found = dict(zip(sums, values, strict=True))
        norm = self.processes.clipped(self.parameters, run.clip)
        if not all(map(_finite, [*values, norm])):
            raise NonFiniteLoss(self._inspection(micro_batches, found, norm))
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.step)
        self.step += 1
        self.meter.add(found, norm, lr, self.config.data.batch, time.perf_counter() - clock)
        self.watch.stepped(self.step)
        return stopped > 0

    # ---- what is reported ------------------------------------------------------------------

    def _journal(self) -> Journal:
        settings = self.config.to_dict()
        with written_aside(self.output / "config.yaml") as file:
            file.write(written(self.config).encode())
        return Journal(self.output, self.config.log, settings, self.step)

    def _report(self, journal: Journal | None) -> None:
        section, last = self.config.log, self.step == self.steps
        if self.step % section.every == 0 or last:
            record = {"epoch": self.step / self.feed.steps_per_epoch, **self.meter.means()}
            record["memory_mib"] = memory_mib(self.processes.device)
            self.meter = Meter()
            self.watch.logged("train", self.step, record)
            if journal is not None:
                journal.write("train", self.step, record)
        if section.pictures and (self.step % section.pictures == 0 or last):
            self._examine(journal)

    @torch.no_grad()
    def _examine(self, journal: Journal | None) -> None:
        """The averaged student on what was held out: measures, a contact sheet, the curves."""
        from clipweather_fast.training.look import draw, look

        if self.held_out is not None:
            self.student.eval()
            with self.ema.applied():
                found = look(self.task, self.held_out, self.feed.micro)
                self.processes.settle(self.student)
            self.student.train()
            self.watch.logged("validation", self.step, found.measures)
            if journal is not None:
                journal.write("validation", self.step, found.measures)
        if self.processes.main:
            try:
                draw(self.output, self.step, found if self.held_out is not None else None)
            except OSError as error:
                self.watch.say(f"the pictures cannot be written: {error}")

    # ---- states ----------------------------------------------------------------------------

    def _resume(self) -> None:
        run = self.config.run
        found = self.checkpoints.newest()
        if found is None:
            return
        path, content = found
        if run.resume == "never":
            raise ValueError(
                f"{self.output} holds a run already ({path.name}); choose another run.output, or "
                "go on with run.resume=auto"
            )
        changed = differences(content["config"], self.config.to_dict())
        if changed and run.resume != "changed":
            raise ValueError(
                f"the run in {self.output} was made with other settings; choose another "
                "run.output, or go on all the same with run.resume=changed\n" + "\n".join(changed)
            )
        restored(content, self.processes.bare(self.student), self.optimizer, self.ema)
        self.step = int(content["step"])
        self.meter = Meter(**content["meter"])
        self.watch.say(f"going on from {path} after step {self.step} of {self.steps}")

    def _save(self, must: bool) -> None:
        """A checkpoint and the export, by the main process; all of them gather the state."""
        content: dict[str, Any] = captured(
            self.processes.bare(self.student), self.optimizer, self.ema
        )
        if self.processes.main:
            content["step"] = self.step
            content["config"] = self.config.to_dict()
            content["meter"] = dataclasses.asdict(self.meter)
            try:
                self.checkpoints.save(self.step, content)
                averaged = {**content["student"], **content["ema"]}
                self.task.export(averaged, self.output / "model")
            except OSError as error:
                if must:
                    raise
                self.watch.say(f"the checkpoint of step {self.step} cannot be written: {error}")
        self.processes.wait()

    def _inspection(
        self, micro_batches: list[Batch], found: Mapping[str, float], norm: float
    ) -> str:
        """Saves what led to a loss that is not finite. Returns what to say."""
        words = ", ".join(f"{name} {value:g}" for name, value in found.items())
        what = f"step {self.step}: the loss is not finite ({words}; gradient norm {norm:g})"
        path = self.output / f"nonfinite-{self.step:09}-{self.processes.rank}.pt"
        student = captured(self.processes.bare(self.student))["student"]
        try:
            self.output.mkdir(parents=True, exist_ok=True)
            content = {"step": self.step, "micro_batches": micro_batches, "parts": dict(found)}
            torch.save({**content, "norm": norm, "student": student}, path)
        except (OSError, RuntimeError) as error:
            return f"{what}; the batch could not be saved: {error}"
        return f"{what}; the batch and the weights are in {path}"

    @contextmanager
    def _signals(self) -> Iterator[list[int]]:
        """A list of the signals that asked to stop; a later one acts as ever.

        A terminal or scheduler signals a whole group of processes, and a launcher in it passes its
        own on: what comes right after the first is the same request.
        """
        caught: list[int] = []
        before: dict[int, Any] = {}
        first = 0.0

        def asked(number: int, frame: object) -> None:
            nonlocal first
            if not caught:
                caught.append(number)
                first = time.monotonic()
                self.watch.say(f"{signal.Signals(number).name}: stopping after this step")
            elif time.monotonic() - first > SAME_REQUEST:
                signal.signal(number, before[number])
                signal.raise_signal(number)

        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                before[number] = signal.signal(number, asked)
        except ValueError:  # not in the main thread, which alone gets signals
            pass
        try:
            yield caught
        finally:
            for caught_number, handler in before.items():
                signal.signal(caught_number, handler)


def _scalar(value: Tensor) -> Tensor:
    return value.float().reshape(())


def _finite(value: float) -> bool:
    return value - value == 0
