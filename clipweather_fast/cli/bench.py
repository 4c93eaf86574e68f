"""``clipweather bench``."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from clipweather_fast.cli import _options as options
from clipweather_fast.cli._progress import Bar, shown
from clipweather_fast.cli._stopping import exit_code, stoppable

if TYPE_CHECKING:
    from clipweather_fast.speed import Case, Row

__all__ = ["bench"]

#: Under two minutes with the start of the process and the building of the networks.
SECONDS = 90.0
#: Width of the names' column.
NAMES = 34


def bench(
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            "-n",
            metavar="NAME",
            help="A network of `clipweather models`; may be repeated. By default tiny, small and "
            "base.",
            show_default=False,
        ),
    ] = None,
    sizes: Annotated[
        list[str] | None,
        typer.Option(
            "--size",
            metavar="WIDTHxHEIGHT",
            help="Size of the pictures; may be repeated. By default 256x256, 720x480, 1920x1080.",
            show_default=False,
        ),
    ] = None,
    seconds: Annotated[
        float,
        typer.Option(min=0.1, help="Time for all of it; what does not fit is left out."),
    ] = SECONDS,
    report: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write the figures.", show_default=False),
    ] = None,
    device: options.DeviceOption = "auto",
    gpu: options.GpuOption = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    threads: options.ThreadsOption = None,
) -> None:
    """Measure how many pictures per second this machine restores, against plain PyTorch.

    Both sides run the same network in the same precision, one picture at a time; plain PyTorch
    uses its own attention. A result that differs gets no time. Networks that come without weights
    have random ones, which take as long.
    """
    cases = _cases(models, sizes)
    place = _place(options.place(device, gpu))
    if report is not None:
        _check_target(report)
    if threads is not None:
        torch.set_num_threads(threads)
    from clipweather_fast.speed.table import precision

    run = Run(place, precision(dtype.value, place))
    stopped = None
    failed = False
    try:
        with stoppable():
            run.watch(cases, seconds)
    except KeyboardInterrupt as stop:
        run.interrupted, stopped = True, exit_code(stop)
    except (ImportError, RuntimeError) as error:
        typer.echo(f"clipweather bench: {error}", err=True)
        failed = True
    for line in run.lines():
        typer.echo(line)
    if report is not None:
        try:
            run.write(report)
        except OSError as error:
            typer.echo(f"{shown(report)}: {error.strerror}", err=True)
            failed = True
    raise typer.Exit(stopped or int(failed))


def _cases(models: list[str] | None, sizes: list[str] | None) -> list[Case]:
    from clipweather_fast.models import default_config
    from clipweather_fast.speed import NETWORKS, SIZES, Case

    for model in models or ():
        try:
            default_config(model)
        except ValueError as error:
            words = str(error).removeprefix("create_model: ")
            raise typer.BadParameter(words, param_hint="'--model' / '-n'") from None
    pixels = [_size(size) for size in sizes] if sizes else list(SIZES)
    pixels.sort(key=lambda size: size[0] * size[1])
    return [Case(model, *size) for model in models or NETWORKS for size in pixels]


def _size(value: str) -> tuple[int, int]:
    width, _, height = value.partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise typer.BadParameter(
            f"{value!r} is not WIDTHxHEIGHT in pixels, such as 720x480", param_hint="'--size'"
        )
    return int(width), int(height)


def _place(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def _check_target(report: Path) -> None:
    if report.is_dir() or not report.absolute().parent.is_dir():
        raise typer.BadParameter(
            f"{shown(report)} cannot be written: it must be a file in a folder that is there",
            param_hint="'--json'",
        )


@dataclass
class Run:
    """What has been measured so far."""

    device: torch.device
    dtype: torch.dtype
    interrupted: bool = False
    rows: list[Row] = field(default_factory=list)

    def watch(self, cases: list[Case], seconds: float) -> None:
        """Measures under a progress bar."""
        from clipweather_fast.speed import measured

        with Bar(len(cases), "cases", "measuring") as bar:
            for row in measured(cases, self.device, self.dtype, seconds):
                self.rows.append(row)
                bar.advance()

    def facts(self) -> dict[str, Any]:
        """Where it was measured."""
        from clipweather_fast import __version__
        from clipweather_fast.installation import processor

        on_gpu = self.device.type == "cuda"
        return {
            "clipweather_fast": __version__,
            "torch": torch.__version__,
            "device": torch.cuda.get_device_name(self.device) if on_gpu else processor(),
            "threads": torch.get_num_threads(),
            "dtype": str(self.dtype).removeprefix("torch."),
            "interrupted": self.interrupted,
        }

    def lines(self) -> list[str]:
        """The table, as it is printed."""
        facts = self.facts()
        threads = f"{facts['threads']} thread{'s' * (facts['threads'] != 1)}"
        head = f"{facts['device']}, {threads}, {facts['dtype']}, PyTorch {facts['torch']}"
        found = [head, "", f"{'':<{NAMES}}{'pictures/s':>12}{'plain PyTorch':>16}{'faster':>10}"]
        found += [_line(row) for row in self.rows]
        return [*found, *(["", "interrupted"] if self.interrupted else [])]

    def write(self, path: Path) -> None:
        """The figures, as JSON."""
        from clipweather_fast.restore.aside import written_aside

        content = {**self.facts(), "cases": [_figures(row) for row in self.rows]}
        with written_aside(path) as file:
            file.write(json.dumps(content, indent=1).encode())
            file.write(b"\n")


def _line(row: Row) -> str:
    case = row.case
    name = f"{case.model:<20}{f'{case.width} x {case.height}':<{NAMES - 20}}"
    if row.fast is None or row.plain is None:
        return f"{name}  left out: {row.reason}"
    rates = [f"{1 / times.median:.3g}" for times in (row.fast, row.plain)]
    return f"{name}{rates[0]:>12}{rates[1]:>16}{row.plain.median / row.fast.median:>8.2f} x"


def _figures(row: Row) -> dict[str, Any]:
    case = row.case
    found: dict[str, Any] = {"model": case.model, "width": case.width, "height": case.height}
    if row.fast is None or row.plain is None:
        return found | {"left_out": row.reason}
    for name, times in (("fast", row.fast), ("plain", row.plain)):
        found |= {f"{name}_s": times.median, f"{name}_rounds": times.rounds}
    return found | {
        "pictures_per_s": 1 / row.fast.median,
        "times_faster": row.plain.median / row.fast.median,
        "largest_difference": row.difference,
    }
