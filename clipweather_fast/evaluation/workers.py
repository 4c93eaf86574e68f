"""Many pictures at once: threads around one network, or processes with a network each.

The network gets one picture at a time in either, so that a picture's figures depend on nothing but
the picture: not on its neighbours, the order, or who computes it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    Future,
    ProcessPoolExecutor,
    ThreadPoolExecutor,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace

from clipweather_fast.evaluation.cases import Case
from clipweather_fast.evaluation.records import Record
from clipweather_fast.evaluation.scorer import Loaded, Scorer
from clipweather_fast.restore.picture import Picture

__all__ = ["in_processes", "in_threads"]

Restoring = Callable[[Picture], Picture]
Found = tuple[Case, Record]


def in_threads(
    cases: Iterable[Case], scorer: Scorer, workers: int | None = None
) -> Generator[Found, None, None]:
    """Yields each case with its record, as they are finished.

    Threads decode and score, the network runs in the caller's thread. What is decoded and not yet
    scored is bounded. When the caller stops early, what has begun is finished and dropped.

    Args:
        cases: what to score.
        scorer: how.
        workers: threads that decode, and as many that score; None: the processors, at most 16.
    """
    workers = workers or min(16, os.cpu_count() or 1)
    readers = ThreadPoolExecutor(workers, "read")
    finishers = ThreadPoolExecutor(workers, "score")
    ahead: deque[tuple[Case, Future[Loaded]]] = deque()
    behind: dict[Future[Record], Case] = {}
    waiting = iter(cases)
    try:
        while True:
            for case in waiting:
                ahead.append((case, readers.submit(scorer.read, case)))
                if len(ahead) > workers:
                    break
            if not ahead:
                break
            case, reading = ahead.popleft()
            try:
                loaded = scorer.restore(reading.result())
            except Exception as error:  # a bad picture must not stop the rest
                yield case, scorer.failed(case, error)
                continue
            behind[finishers.submit(scorer.finish, loaded)] = case
            if len(behind) > workers:
                wait(behind, return_when=FIRST_COMPLETED)
            yield from _finished(behind, scorer)
        while behind:
            wait(behind, return_when=FIRST_COMPLETED)
            yield from _finished(behind, scorer)
    finally:
        readers.shutdown(wait=False, cancel_futures=True)
        finishers.shutdown(wait=True, cancel_futures=True)


def _finished(behind: dict[Future[Record], Case], scorer: Scorer) -> Iterator[Found]:
    for future in [future for future in behind if future.done()]:
        case = behind.pop(future)
        error = future.exception()
        if isinstance(error, BrokenProcessPool):
            raise error  # of all that waits, not of this picture
        if isinstance(error, Exception):
            yield case, scorer.failed(case, error)
        else:
            yield case, future.result()


_scorer: Scorer | None = None


def in_processes(
    cases: Iterable[Case],
    scorer: Scorer,
    processes: int,
    open_restorer: Callable[[], Restoring] | None,
) -> Generator[Found, None, None]:
    """Yields each case with its record, as they are finished, by processes of their own.

    Args:
        cases: what to score.
        scorer: how; its restorer is not used.
        processes: how many.
        open_restorer: makes the restorer in each process; it travels there by pickle. None: all
            cases are restored.

    Raises:
        RuntimeError: a process died, as when memory runs out.
    """
    pool = ProcessPoolExecutor(
        processes,
        multiprocessing.get_context("spawn"),  # a forked copy of PyTorch's threads may hang
        initializer=_begin,
        initargs=(replace(scorer, restorer=None), open_restorer),
    )
    behind: dict[Future[Record], Case] = {}
    waiting = iter(cases)
    try:
        while True:
            for case in waiting:
                behind[pool.submit(_score, case)] = case
                if len(behind) >= 2 * processes:
                    break
            if not behind:
                break
            wait(behind, return_when=FIRST_COMPLETED)
            yield from _finished(behind, scorer)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a process ended by itself: it could not open the network, or memory ran out; take "
            "fewer processes, or smaller tiles"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(scorer: Scorer, open_restorer: Callable[[], Restoring] | None) -> None:
    global _scorer
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _scorer = replace(scorer, restorer=None if open_restorer is None else open_restorer())


def _score(case: Case) -> Record:
    assert _scorer is not None
    return _scorer.whole(case)
