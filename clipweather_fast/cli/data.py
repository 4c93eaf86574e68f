"""``clipweather data check`` and ``clipweather data list``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipweather_fast.cli._progress import Bar, shown
from clipweather_fast.restore.aside import written_aside

if TYPE_CHECKING:
    from clipweather_fast.data import Pair
    from clipweather_fast.data.check import DatasetReport

__all__ = ["data"]

#: Problems of one kind that are printed; the JSON report has all.
PRINTED = 10

data = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Find, check and make datasets of degraded and clear pictures.",
)


class Layout(StrEnum):
    """The layouts of datasets by name."""

    auto = "auto"
    list = "list"
    basicsr = "basicsr"
    folders = "folders"
    tkl = "tkl"
    jsonl = "jsonl"


class Split(StrEnum):
    """Which pictures of a dataset."""

    all = "all"
    train = "train"
    val = "val"
    test = "test"


LayoutOption = Annotated[
    Layout,
    typer.Option(
        help="How the dataset is laid out: TransWeather's lists, BasicSR's two folders, "
        "weather/input beside weather/gt, JSON of [truth, image], or JSON lines; auto finds out."
    ),
]


@data.command()
def check(
    roots: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR...",
            help="Folders or lists; give training and test data together to see what they share.",
            show_default=False,
        ),
    ],
    layout: LayoutOption = Layout.auto,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick", help="Read only headers: sees neither damaged pixels nor equal pictures."
        ),
    ] = False,
    counts: Annotated[
        bool,
        typer.Option(
            "--counts/--no-counts",
            help="Compare with the published counts, where the pictures are from there.",
        ),
    ] = True,
    report: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write everything that was found.", show_default=False
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Threads; default: one per processor.", show_default=False),
    ] = None,
) -> None:
    """Check a dataset before training on it.

    Counts against the published ones, missing partners, unreadable files, pictures and truths of
    different sizes, duplicates, and test pictures among the training data, by Outdoor-Rain's scene
    numbers and by equal pixels. The exit code is 1 if something must be put right.

    Example: clipweather data check data/train data/test
    """
    from clipweather_fast.data import DatasetError
    from clipweather_fast.data.check import check as checked

    if report is not None and not report.parent.is_dir():
        words = f"there is no folder {shown(report.parent)}"
        raise typer.BadParameter(words, param_hint="'--json'")
    began = time.perf_counter()
    try:
        with Bar(None, "files", "checking") as bar:
            found = checked(
                roots,
                layout.value,
                decode=not quick,
                counts=counts,
                workers=workers,
                begin=lambda files: bar.reached(0, files),
                progress=bar.advance,
            )
    except DatasetError as error:
        raise typer.BadParameter(shown(error), param_hint="'DIR...'") from None
    except KeyboardInterrupt:
        typer.echo("interrupted", err=True)
        raise typer.Exit(130) from None
    _print(found)
    seconds = time.perf_counter() - began
    how = "headers of " if quick else ""
    typer.echo(f"checked {how}{found.files:,} files ({seconds:.1f} s)", err=True)
    if report is not None:
        _write(report, found)
    raise typer.Exit(0 if found.good else 1)


@data.command("list")
def list_pairs(
    root: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder or a list.", show_default=False)
    ],
    layout: LayoutOption = Layout.auto,
    split: Annotated[Split, typer.Option(help="Only these pictures.")] = Split.all,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="JSON lines, with paths relative to DIR: themselves a layout (jsonl)."
        ),
    ] = False,
    only_counts: Annotated[
        bool, typer.Option("--counts", help="Only how many pictures there are of each weather.")
    ] = False,
) -> None:
    """List the pairs of a dataset as training and evaluation find them.

    Each line is the picture, its truth and the weather, with tabs between. Pairs with a problem are
    left out and named; then the exit code is 1.

    Example: clipweather data list data/train --json > data/train/pairs.jsonl
    """
    from clipweather_fast.data import DatasetError
    from clipweather_fast.data.find import collect

    try:
        found = collect(root, layout.value)
    except DatasetError as error:
        raise typer.BadParameter(shown(error), param_hint="'DIR'") from None
    pairs = [pair for pair in found.pairs if split == Split.all or pair.split == split.value]
    if only_counts:
        table = Counter((pair.split or "no split", pair.weather or "unknown") for pair in pairs)
        for (name, weather), count in sorted(table.items()):
            typer.echo(f"{name}\t{weather}\t{count}")
    else:
        _print_pairs(pairs, root if root.is_dir() else root.parent, as_json)
    bad = [problem for problem in found.problems if problem.fatal]
    for problem in bad:
        typer.echo(shown(problem), err=True)
    typer.echo(f"{len(pairs):,} pairs", err=True)
    raise typer.Exit(1 if bad or not pairs else 0)


def _print_pairs(pairs: Sequence[Pair], root: Path, as_json: bool) -> None:
    try:
        for pair in pairs:
            if as_json:
                record = {
                    "lq": pair.image.relative_to(root).as_posix(),
                    "gt": pair.truth.relative_to(root).as_posix(),
                    "weather": pair.weather,
                }
                sys.stdout.write(json.dumps(record) + "\n")
            else:
                line = f"{shown(pair.image)}\t{shown(pair.truth)}\t{pair.weather or 'unknown'}"
                sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:  # as of `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _print(report: DatasetReport) -> None:
    """The report as text."""
    layouts = ", ".join(report.layouts) or "none"
    typer.echo(f"{report.pairs:,} pairs (layout: {layouts})")
    for split, weathers in report.counts.items():
        parts = ", ".join(f"{weather} {count:,}" for weather, count in weathers.items())
        typer.echo(f"  {split}: {parts}")
    for name, splits in report.published.items():
        parts = ", ".join(f"{split} {count:,}" for split, count in splits.items())
        typer.echo(f"  of {name}: {parts}")
    for fatal, title in ((True, "problems"), (False, "remarks")):
        these = [problem for problem in report.problems if problem.fatal == fatal]
        typer.echo(f"{title}: {len(these):,}" if these else f"no {title}")
        for kind in dict.fromkeys(problem.kind for problem in these):
            alike = [problem for problem in these if problem.kind == kind]
            typer.echo(f"  {kind} ({len(alike):,})")
            for problem in alike[:PRINTED]:
                typer.echo(f"    {shown(problem)}")
            if len(alike) > PRINTED:
                typer.echo(f"    and {len(alike) - PRINTED:,} more; --json FILE has all")


def _write(path: Path, report: DatasetReport) -> None:
    try:
        with written_aside(path) as file:
            file.write(json.dumps(report.as_json(), indent=1).encode() + b"\n")
    except OSError as error:
        typer.echo(f"{shown(path)}: {error.strerror}", err=True)
        raise typer.Exit(1) from None
