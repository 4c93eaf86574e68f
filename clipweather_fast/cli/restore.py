"""``clipweather restore``."""

from __future__ import annotations

import errno
import json
import os
import time
import warnings
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import clipweather_fast
from clipweather_fast.cli import _options as options
from clipweather_fast.cli._progress import Bar, shown
from clipweather_fast.cli._stopping import exit_code, stoppable
from clipweather_fast.restore import (
    Picture,
    PrecisionWarning,
    Restorer,
    read_picture,
    write_picture,
)
from clipweather_fast.restore import (
    jobs as planning,
)
from clipweather_fast.restore.aside import written_aside
from clipweather_fast.restore.images import side_by_side
from clipweather_fast.restore.jobs import Job
from clipweather_fast.restore.memory import available_bytes
from clipweather_fast.restore.pipeline import Outcome, Pipeline

__all__ = ["restore"]

#: Pictures of one size that a GPU gets together.
BATCH = 8
EXTENSIONS = ("auto", "png", "jpg", "webp", "tif")


def _extension(value: str) -> str:
    value = value.lower().lstrip(".")
    if value not in EXTENSIONS:
        raise typer.BadParameter(f"{value!r} is none of {', '.join(EXTENSIONS)}")
    return value


def restore(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="IN...",
            help="Pictures, folders (searched to the bottom, their layout is kept) and patterns "
            "such as 'photos/**/*.jpg'.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", help="Folder to write to; for a single picture also a file name."
        ),
    ] = ...,  # type: ignore[assignment]  # typer's word for "required"
    more_inputs: Annotated[
        list[str] | None,
        typer.Option("--input", "-i", metavar="IN", help="The same as IN.", show_default=False),
    ] = None,
    model: options.ModelOption = options.DEFAULT_MODEL,
    suffix: Annotated[
        str, typer.Option(help="Put after each name: with _clear, a.jpg becomes a_clear.jpg.")
    ] = "",
    extension: Annotated[
        str,
        typer.Option(
            "--ext",
            metavar="|".join(EXTENSIONS),
            help="File type to write; auto keeps each picture's own.",
            callback=_extension,
        ),
    ] = "auto",
    compare: Annotated[
        bool, typer.Option("--compare", help="Also write NAME_compare: before and after.")
    ] = False,
    skip_existing: Annotated[
        bool,
        typer.Option("--skip-existing", help="Leave pictures whose output is there: go on."),
    ] = False,
    overwrite_inputs: Annotated[
        bool, typer.Option("--overwrite-inputs", help="Allow an output to replace an input.")
    ] = False,
    shard: options.ShardOption = "1/1",
    report: Annotated[
        Path | None,
        typer.Option(
            "--json", metavar="FILE", help="Write what became of each picture.", show_default=False
        ),
    ] = None,
    tile: options.TileOption = "auto",
    tile_overlap: options.TileOverlapOption = 32,
    device: options.DeviceOption = "auto",
    gpu: options.GpuOption = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    fp32: options.Float32Option = False,
    threads: options.ThreadsOption = None,
) -> None:
    """Restore photographs taken in snow, rain, haze or through drops.

    What goes in comes out: size, bit depth, transparency, colour profile, EXIF, XMP and file type
    are kept. A picture that cannot be read, and a file of several pages or frames, is named and the
    rest go on; then the exit code is 1. Ctrl-C leaves only whole files; the same command with
    --skip-existing goes on from there.

    Example: clipweather restore photos/ -o clear/ --compare
    """
    jobs = _planned(
        [*(inputs or []), *(more_inputs or [])],
        output,
        shard,
        suffix=suffix,
        extension=extension,
        compare=compare,
        overwrite_inputs=overwrite_inputs,
        skip_existing=skip_existing,
    )
    for job in jobs[:1]:
        _make_folder(job.target, "'--output' / '-o'")
    if report is not None:
        _make_folder(report, "'--json'")
        _check_report(report, jobs)
    restorer = options.opened(
        model,
        device=device,
        gpu=gpu,
        dtype=dtype,
        fp32=fp32,
        tile=tile,
        tile_overlap=tile_overlap,
        threads=threads,
    )
    run = Run(model, restorer)
    stopped = None
    try:
        with stoppable():
            run.watch(jobs, skip_existing)
    except KeyboardInterrupt as stop:
        run.interrupted, stopped = True, exit_code(stop)
    failed = run.count("failed") > 0
    if report is not None:
        try:
            run.write(report)
        except OSError as error:
            typer.echo(f"{shown(report)}: {error.strerror}", err=True)
            failed = True
    typer.echo(run.summary(), err=True)
    raise typer.Exit(stopped or int(failed))


def _planned(inputs: list[str], output: Path, part: str, **choices: Any) -> list[Job]:
    if not inputs:
        raise typer.BadParameter("no input was given", param_hint="'IN...' / '--input' / '-i'")
    index, _, count = part.partition("/")
    try:
        return planning.shard(planning.plan(inputs, output, **choices), int(index), int(count))
    except planning.InputError as error:
        raise typer.BadParameter(shown(error), param_hint="'IN...' / '--input' / '-i'") from None
    except planning.OutputError as error:
        raise typer.BadParameter(shown(error), param_hint="'--output' / '-o'") from None


def _make_folder(target: Path, hint: str) -> None:
    """Makes a file's folder, to fail before the network is loaded rather than at the end."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(target.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(target.parent))
    except OSError as error:
        words = f"{shown(error.filename)}: {error.strerror}"
        raise typer.BadParameter(words, param_hint=hint) from None


def _bytes(picture: Picture) -> int:
    arrays = (picture.pixels, picture.alpha, picture.inks)
    return sum(array.nbytes for array in arrays if array is not None)


def _check_report(report: Path, jobs: list[Job]) -> None:
    place = os.path.realpath(report)
    for job in jobs:
        if place in map(os.path.realpath, filter(None, (job.source, job.target, job.compare))):
            raise typer.BadParameter(f"{shown(report)} is a picture's file", param_hint="'--json'")


@dataclass
class Run:
    """What has become of the pictures so far."""

    model: str
    restorer: Restorer
    interrupted: bool = False
    outcomes: list[Outcome] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def watch(self, jobs: list[Job], skip_existing: bool) -> None:
        """Restores the pictures under a progress bar and names what fails."""
        pipeline = self._pipeline()
        # The retry is in the report, and the pictures that it concerns are named.
        warnings.simplefilter("ignore", PrecisionWarning)
        with Bar(len(jobs), "pictures") as bar, closing(pipeline.run(jobs, skip_existing)) as done:
            for outcome in done:
                self.outcomes.append(outcome)
                if outcome.status == "skipped":
                    bar.left_out()
                    continue
                source = shown(outcome.job.source)
                if outcome.status == "failed":
                    bar.say(f"{source}: {shown(outcome.error)}")
                elif outcome.details["retries"]:
                    bar.say(f"{source}: not finite in low precision, computed again in float32")
                if outcome.details.get("left_out"):
                    bar.say(f"{source}: left out {outcome.details['left_out']}")
                bar.advance()
        order = {job: number for number, job in enumerate(jobs)}
        self.outcomes.sort(key=lambda outcome: order[outcome.job])

    def _pipeline(self) -> Pipeline[Picture]:
        gpu = self.restorer.device.type == "cuda"
        processors = os.cpu_count() or 1
        free = available_bytes(torch.device("cpu"))
        return Pipeline(
            read_picture,
            self.restorer,
            write_picture,
            side_by_side,
            details=self._details,
            alike=lambda picture: (picture.pixels.shape, picture.pixels.dtype),
            # A processor is busy with one picture, and needs its threads for the network.
            batch=BATCH if gpu else 1,
            workers=min(16, processors) if gpu else min(2, processors),
            size=_bytes,
            # As much again is left for the network, which asks when it has to cut pictures.
            memory=free and free // 2,
        )

    def _details(self, picture: Picture) -> dict[str, Any]:
        done = asdict(self.restorer.report)
        about = {"width": picture.width, "height": picture.height, "left_out": picture.left_out}
        return about | done

    def count(self, status: str) -> int:
        return sum(outcome.status == status for outcome in self.outcomes)

    def summary(self) -> str:
        seconds = time.perf_counter() - self.began
        restored = self.count("restored")
        counts = [f"{restored} restored"]
        partial = sum(bool(outcome.details.get("left_out")) for outcome in self.outcomes)
        counts += [f"{partial} of them without all that their files hold"] if partial else []
        counts += [f"{self.count(s)} {s}" for s in ("skipped", "failed") if self.count(s)]
        rate = f"{seconds:.1f} s, {restored / seconds:.3g} pictures/s"
        return f"{'interrupted: ' * self.interrupted}{', '.join(counts)} ({rate})"

    def write(self, path: Path) -> None:
        """The report, as JSON."""
        pictures = [
            {
                "input": str(outcome.job.source),
                "output": str(outcome.job.target),
                "compare": outcome.job.compare and str(outcome.job.compare),
                "status": outcome.status,
                "error": outcome.error,
                "seconds": round(outcome.seconds, 4),
                **outcome.details,
            }
            for outcome in self.outcomes
        ]
        found = {
            "clipweather_fast": clipweather_fast.__version__,
            "model": self.model,
            "device": str(self.restorer.device),
            "interrupted": self.interrupted,
            "seconds": round(time.perf_counter() - self.began, 4),
            "restored": self.count("restored"),
            "skipped": self.count("skipped"),
            "failed": self.count("failed"),
            "pictures": pictures,
        }
        with written_aside(path) as file:
            file.write(json.dumps(found, indent=1).encode())
            file.write(b"\n")
