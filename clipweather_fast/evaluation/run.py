"""The evaluation of a restorer on a dataset, or of pictures that are restored already."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

import clipweather_fast
from clipweather_fast.evaluation.cases import Case, cases_of_pairs, saved_places, share
from clipweather_fast.evaluation.protocols import protocol_named
from clipweather_fast.evaluation.records import Journal, Record
from clipweather_fast.evaluation.scorer import Scorer
from clipweather_fast.evaluation.summary import Evaluation
from clipweather_fast.evaluation.workers import Restoring, in_processes, in_threads

if TYPE_CHECKING:
    from clipweather_fast.data import Pair

__all__ = ["evaluate", "weights_digest"]


def evaluate(
    restorer: Restoring | None,
    pairs: Iterable[Pair | Case],
    protocols: Iterable[str] = ("paper",),
    *,
    root: Path | None = None,
    output: Path | None = None,
    settings: Mapping[str, Any] | None = None,
    shard: tuple[int, int] = (1, 1),
    restart: bool = False,
    save: Path | None = None,
    processes: int = 1,
    open_restorer: Callable[[], Restoring] | None = None,
    progress: Callable[[Record, bool], None] = lambda record, known: None,
) -> Evaluation:
    """Restores the pictures of a dataset and scores them.

    Pictures are scored as their files would be: a restored 8-bit picture has 8 bits, so that
    scoring it and scoring the PNG file that ``save`` writes is the same. What fails is a record
    with an ``error``, and the rest go on.

    Args:
        restorer: a :class:`clipweather_fast.Restorer`, or any function of a Picture that returns
            one. None: the cases have restored pictures.
        pairs: the dataset, as :func:`clipweather_fast.data.find_pairs` finds it; or cases.
        protocols: names; the first is the one that pictures are ranked by.
        root: names of pictures are relative to it; None: to the folder that holds all.
        output: a folder for the journal and, once every picture has a record, ``pictures.csv`` and
            ``summary.json``. What the journal knows is not computed again.
        settings: what else the figures depend on; a journal of other settings is refused.
        shard: (i, n): do every n-th picture from the i-th on. The journals of all shards together
            are the evaluation: the run that completes them writes the results.
        restart: throw away what ``output`` has of an earlier run.
        save: a folder for the restored pictures, as PNG files.
        processes: more than 1: so many processes with a restorer each.
        open_restorer: makes a restorer in such a process; a function that pickle can pass on.
        progress: called with each record, and whether it was known from the journal.

    Returns:
        The results, of all shards whose records are known.

    Raises:
        ValueError: an unknown protocol, nothing to evaluate, or a shard that is none.
        JournalError: ``output`` belongs to another evaluation.
        OSError: ``output`` cannot be written to.
        RuntimeError: a process died.
    """
    names = [protocol_named(protocol).name for protocol in dict.fromkeys(protocols)]
    cases = _cases(pairs, root)
    if not names or not cases:
        raise ValueError(f"evaluate: there is no {'picture' if names else 'protocol'}")
    mine = share(cases, *shard)
    if processes > 1 and restorer is not None and open_restorer is None:
        raise ValueError("evaluate: several processes need open_restorer")
    scorer = Scorer(restorer, names, None if save is None else (save, saved_places(cases)))
    about = _about(restorer, names, settings)
    known: dict[str, Record] = {}
    with nullcontext() if output is None else Journal(output, about, shard, restart) as journal:
        if journal is not None:
            found = {case.name: journal.known(case) for case in cases}
            known = {name: record for name, record in found.items() if record is not None}
        waiting = [case for case in mine if not _is_done(case, known.get(case.name), scorer)]
        left = {case.name for case in waiting}
        for case in mine:
            if case.name not in left:
                progress(known[case.name], True)
        work = (
            in_processes(waiting, scorer, processes, open_restorer)
            if processes > 1
            else in_threads(waiting, scorer)
        )
        with closing(work):
            for case, record in work:
                known[case.name] = record
                if journal is not None:
                    journal.append(record, case)
                progress(record, False)
    records = [known[case.name] for case in cases if case.name in known]
    result = Evaluation(records, names, about, len(cases) - len(records))
    if output is not None and not result.missing:
        result.write(output)
    return result


def weights_digest(network: nn.Module) -> str:
    """Sixteen hexadecimal digits that tell two networks' weights apart."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        if isinstance(value, torch.Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            digest.update(
                value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            )
    return digest.hexdigest()[:16]


def _cases(pairs: Iterable[Pair | Case], root: Path | None) -> Sequence[Case]:
    pairs = list(pairs)
    cases = [one for one in pairs if isinstance(one, Case)]
    if len(cases) == len(pairs):
        return cases
    return [*cases, *cases_of_pairs([one for one in pairs if not isinstance(one, Case)], root)]


def _about(
    restorer: Restoring | None, protocols: Sequence[str], settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What the figures depend on: as far as it is seen here, and what the caller says."""
    model = getattr(restorer, "model", None)
    digest = weights_digest(model) if isinstance(model, nn.Module) else None
    about = {"version": clipweather_fast.__version__, "protocols": list(protocols)}
    return about | {"weights": digest} | dict(settings or {})


def _is_done(case: Case, record: Record | None, scorer: Scorer) -> bool:
    """Whether a case needs no work: it has scores, and its picture lies where it is wanted."""
    if record is None or record.error is not None:
        return False
    if scorer.save is None:
        return True
    folder, places = scorer.save
    return (folder / places[case.name]).is_file()
