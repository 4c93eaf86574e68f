"""Contact sheets of the worst and the best pictures of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor

from clipweather_fast.evaluation.cases import Case
from clipweather_fast.evaluation.records import Record
from clipweather_fast.evaluation.samples import samples_of
from clipweather_fast.evaluation.scorer import Scorer
from clipweather_fast.evaluation.summary import Evaluation
from clipweather_fast.evaluation.workers import Restoring
from clipweather_fast.restore.picture import Picture

__all__ = ["write_gallery"]


def write_gallery(
    evaluation: Evaluation,
    cases: Iterable[Case],
    restorer: Restoring | None,
    folder: Path,
    count: int = 4,
) -> list[Path]:
    """Writes ``worst.png`` and ``best.png``: degraded, restored and true pictures with figures.

    Pictures are ranked by their PSNR under the evaluation's first protocol, and restored again.

    Args:
        evaluation: the results.
        cases: what was evaluated.
        restorer: as for the evaluation.
        folder: where.
        count: rows on a sheet.

    Returns:
        The files; none if nothing was scored.
    """
    from clipweather_fast.contact_sheet import contact_sheet

    by_name = {case.name: case for case in cases}
    scorer = Scorer(restorer, evaluation.protocols)
    written = []
    for name, best in (("worst", False), ("best", True)):
        chosen = evaluation.worst(evaluation.protocols[0], count, best)
        rows, captions = [], []
        for record in chosen:
            loaded = scorer.restore(scorer.read(by_name[record.name]))
            pictures = (loaded.image, loaded.restored, loaded.truth)
            rows.append([_tensor(picture) for picture in pictures if picture is not None])
            captions.append(_caption(record, evaluation.protocols[0]))
        if rows:
            known = all(len(row) == 3 for row in rows)
            headings = ["input", "restored", "truth"] if known else ["restored", "truth"]
            rows = [row[-len(headings) :] for row in rows]
            path = folder / f"{name}.png"
            contact_sheet(rows, headings, path, captions=captions)
            written.append(path)
    return written


def _caption(record: Record, protocol: str) -> str:
    # The sheet's font has no other letters.
    text = f"{ascii(record.name)[1:-1]}: {record.scores[protocol]}"
    return f"{text}, input {record.before[protocol]}" if protocol in record.before else text


def _tensor(picture: Picture) -> Tensor:
    samples = samples_of(picture)
    scale = {"uint8": 255, "uint16": 65535}[samples.dtype.name]
    return torch.from_numpy(samples.astype("float32") / scale)
