"""Restores many pictures: while one is computed, the next are decoded and the last are encoded.

Decoders and encoders are threads (Pillow releases the interpreter while it works), the network runs
in the caller's thread. What is decoded and not yet written is bounded, so memory does not grow with
the number of pictures.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from clipweather_fast.restore.jobs import Job
from clipweather_fast.restore.picture import PictureError

__all__ = ["Outcome", "Pipeline"]

PictureType = TypeVar("PictureType")


@dataclass(frozen=True)
class Outcome:
    """What became of one picture.

    Attributes:
        job: the picture.
        status: "restored", "skipped" (the target was there), or "failed".
        error: why it failed, in words.
        seconds: what the network took, for each picture of a batch its share.
        details: what ``Pipeline.details`` says of it.
    """

    job: Job
    status: Literal["restored", "skipped", "failed"]
    error: str | None = None
    seconds: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pipeline(Generic[PictureType]):
    """Reads, restores and writes pictures at the same time.

    Attributes:
        read: decodes a file.
        restore: the network, on one or more pictures; called in the caller's thread.
        write: encodes a picture into a file, which must appear whole or not at all.
        beside: joins a picture and its restoration for ``Job.compare``.
        details: what is to be remembered of a picture; called after ``restore``.
        alike: pictures for which it gives the same may be restored together.
        batch: so many of them, if they are decoded already.
        workers: threads that decode, and as many that encode.
        size: the bytes of a picture.
        memory: bytes that waiting pictures may take together, as far as that can be known before
            they are decoded: all are taken to be as large as the largest so far. None: no limit
            but that of their number.
    """

    read: Callable[[Path], PictureType]
    restore: Callable[[list[PictureType]], list[PictureType]]
    write: Callable[[PictureType, Path], None]
    beside: Callable[[PictureType, PictureType], PictureType]
    details: Callable[[PictureType], Mapping[str, Any]] = lambda picture: {}
    alike: Callable[[PictureType], Hashable] = id
    batch: int = 1
    workers: int = min(4, os.cpu_count() or 1)
    size: Callable[[PictureType], int] = lambda picture: 0
    memory: int | None = None

    def run(
        self, jobs: Sequence[Job], skip_existing: bool = False
    ) -> Generator[Outcome, None, None]:
        """Yields what became of each job, roughly in their order.

        A job that fails is reported and the rest go on. When the caller stops early, by an
        exception such as ``KeyboardInterrupt`` or by closing the iterator, files that are being
        written are finished and the rest is dropped.

        Args:
            jobs: the pictures.
            skip_existing: leave jobs alone whose files are all there when their turn comes.
        """
        readers = ThreadPoolExecutor(self.workers, "read")
        writers = ThreadPoolExecutor(self.workers, "write")
        ahead: deque[_Reading[PictureType]] = deque()
        behind: set[Future[Outcome]] = set()
        waiting = iter(jobs)
        largest = 0  # picture until now, in bytes
        most_ahead, most_behind = self._most(largest)
        try:
            while True:
                while len(ahead) < most_ahead and (job := next(waiting, None)) is not None:
                    if skip_existing and _exists(job):
                        yield Outcome(job, "skipped")
                    else:
                        ahead.append((job, readers.submit(self.read, job.source)))
                if not ahead:
                    break
                batch = self._together(ahead)
                for _, reading in batch:
                    if reading.exception() is None:
                        largest = max(largest, self.size(reading.result()))
                for outcome in self._restored(batch):
                    if isinstance(outcome, Outcome):
                        yield outcome
                    else:
                        behind.add(writers.submit(self._write, *outcome))
                del batch, reading, outcome  # they hold pictures
                most_ahead, most_behind = self._most(largest)
                yield from _written(behind, wait_for=None)
                while len(behind) >= most_behind:
                    yield from _written(behind, wait_for=FIRST_COMPLETED)
            while behind:
                yield from _written(behind, wait_for=FIRST_COMPLETED)
        finally:
            readers.shutdown(wait=False, cancel_futures=True)
            writers.shutdown(wait=True, cancel_futures=True)

    def _most(self, largest: int) -> tuple[int, int]:
        """How many pictures may wait to be restored, and how many to be written."""
        ahead, behind = 2 * self.workers + self.batch - 1, 2 * self.workers
        if self.memory is None:
            return ahead, behind
        # Behind the network there are two to compare. With fewer than two nothing would overlap.
        fit = max(2, self.memory // (3 * largest) if largest else 2)
        return min(ahead, fit), min(behind, fit)

    def _together(self, ahead: deque[_Reading[PictureType]]) -> list[_Reading[PictureType]]:
        """The next picture, once it is decoded, and those like it that follow and are decoded."""
        batch = [ahead.popleft()]
        if self.batch == 1 or batch[0][1].exception() is not None:
            return batch
        kind = self.alike(batch[0][1].result())
        while len(batch) < self.batch and ahead and ahead[0][1].done():
            reading = ahead[0][1]
            if reading.exception() is not None or self.alike(reading.result()) != kind:
                break
            batch.append(ahead.popleft())
        return batch

    def _restored(
        self, batch: list[_Reading[PictureType]]
    ) -> Iterator[Outcome | tuple[Outcome, PictureType | None, PictureType]]:
        """For each picture why it failed, or (outcome, picture, restored picture) to be written.

        The picture as it was is there if it is to be compared.
        """
        job, _ = batch[0]
        try:
            pictures = [reading.result() for _, reading in batch]
            began = time.perf_counter()
            restored = self.restore(pictures)
            seconds = (time.perf_counter() - began) / len(batch)
        except Exception as error:  # a bad picture must not stop the rest
            if len(batch) == 1:
                yield Outcome(job, "failed", in_words(error, job.source))
                return
            for one in batch:
                yield from self._restored([one])
            return
        for (job, _), before, after in zip(batch, pictures, restored, strict=True):
            details = self.details(before)
            kept = None if job.compare is None else before
            yield Outcome(job, "restored", None, seconds, details), kept, after

    def _write(
        self, outcome: Outcome, picture: PictureType | None, restored: PictureType
    ) -> Outcome:
        target = outcome.job.target
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.write(restored, target)
            if outcome.job.compare is not None and picture is not None:
                target = outcome.job.compare
                self.write(self.beside(picture, restored), target)
        except Exception as error:
            words = f"{target}: {in_words(error, target)}"
            return replace(outcome, status="failed", error=words)
        return outcome


_Reading = tuple[Job, Future[PictureType]]


def in_words(error: BaseException, path: Path) -> str:
    """What an error says, without the path that will be printed beside it."""
    if isinstance(error, PictureError):
        return error.words
    if isinstance(error, OSError) and error.strerror:
        named = error.filename
        elsewhere = named is not None and str(named) != str(path)
        return f"{error.strerror}: {named}" if elsewhere else error.strerror
    text = str(error)
    # An error of the project is a sentence; others need their type to be understood.
    if isinstance(error, OSError | ValueError) and text:
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _exists(job: Job) -> bool:
    # An empty file is what a crash of the machine leaves of one that was not on its disk yet.
    files = filter(None, (job.target, job.compare))
    return all(os.path.isfile(file) and os.path.getsize(file) > 0 for file in files)


def _written(behind: set[Future[Outcome]], wait_for: str | None) -> Iterator[Outcome]:
    """The writes that are done, after waiting for one if asked to."""
    if wait_for is not None:
        wait(behind, return_when=wait_for)
    done = {future for future in behind if future.done()}
    behind -= done
    for future in done:
        yield future.result()
