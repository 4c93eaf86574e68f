"""``clipweather eval``."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from clipweather_fast.cli import _options as options
from clipweather_fast.cli._progress import Bar, shown
from clipweather_fast.restore import PrecisionWarning, Restorer
from clipweather_fast.restore.jobs import InputError
from clipweather_fast.restore.memory import available_bytes

if TYPE_CHECKING:
    from clipweather_fast.evaluation import Case, Evaluation, Record

__all__ = ["evaluate"]

#: Free memory for each process with a network on the CPU, if their number is not stated.
MEMORY = 4 << 30
#: Rows of a contact sheet.
SHOWN = 4


def _protocols(values: list[str]) -> list[str]:
    from clipweather_fast.evaluation import PROTOCOLS

    names = [name for value in values for name in value.split(",")]
    for name in names:
        if name not in PROTOCOLS:
            known = ", ".join(PROTOCOLS)
            raise typer.BadParameter(f"{name!r} is none of {known}")
    return list(dict.fromkeys(names))


def _existing(value: Path | None) -> Path | None:
    if value is not None and not value.exists():
        raise typer.BadParameter(f"{shown(value)} does not exist")
    return value


def evaluate(
    data: Annotated[
        Path,
        typer.Argument(
            metavar="DATA|RESTORED",
            callback=_existing,
            help="A dataset to restore and score: a folder, or a list file. With TRUTH: a folder "
            "of restored pictures, or one.",
            show_default=False,
        ),
    ],
    truth: Annotated[
        Path | None,
        typer.Argument(
            metavar="TRUTH",
            callback=_existing,
            help="A folder of true pictures, or one.",
            show_default=False,
        ),
    ] = None,
    model: options.ModelOption = options.DEFAULT_MODEL,
    protocols: Annotated[
        list[str],
        typer.Option(
            "--protocol",
            "-p",
            metavar="NAME",
            callback=_protocols,
            help="paper, rgb, y_matlab or transweather_2021; repeat it, or separate by commas. "
            "The first ranks the pictures.",
        ),
    ] = ["paper", "rgb"],  # noqa: B006 - typer copies it
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FOLDER",
            help="Write pictures.csv, summary.json, worst.png and best.png there. The same command "
            "goes on after an interruption.",
            show_default=False,
        ),
    ] = None,
    restored: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            callback=_existing,
            help="Score the pictures of this folder instead of restoring DATA's; named like its "
            "inputs, as --save writes them.",
            show_default=False,
        ),
    ] = None,
    degraded: Annotated[
        Path | None,
        typer.Option(
            "--input",
            "-i",
            metavar="FOLDER",
            callback=_existing,
            help="With TRUTH: the degraded pictures, for the gain.",
            show_default=False,
        ),
    ] = None,
    layout: Annotated[
        str, typer.Option(help="How DATA is laid out: auto, list, basicsr, folders, tkl, jsonl.")
    ] = "auto",
    split: Annotated[
        str | None,
        typer.Option(help="Which split of DATA, such as test.", show_default=False),
    ] = None,
    weather: Annotated[
        str | None,
        typer.Option(help="State DATA's weather: snow, rain or raindrop.", show_default=False),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep the restored pictures, as PNG files.", show_default=False
        ),
    ] = None,
    shard: options.ShardOption = "1/1",
    processes: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Processes, each with its own network. On the CPU by default as many as "
            "processors and memory allow, on a GPU one.",
            show_default=False,
        ),
    ] = None,
    restart: Annotated[
        bool, typer.Option("--restart", help="Throw away what --output has of an earlier run.")
    ] = False,
    tile: options.TileOption = "auto",
    tile_overlap: options.TileOverlapOption = 32,
    device: options.DeviceOption = "auto",
    gpu: options.GpuOption = None,
    dtype: options.DtypeOption = options.Dtype.float32,
    threads: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Threads of each process. On the CPU 1 by default: another number rounds "
            "otherwise, so the figures would depend on it.",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Restore and score a dataset, or score pictures that are restored already.

    PSNR and SSIM are computed under named protocols, and numbers of different protocols must not be
    compared. A picture that cannot be scored is named and the rest go on; then the exit code is 1.
    Shards may run on several machines with one --output; the last one puts them together.

    Example: clipweather eval data/test -n my_model -p paper -p rgb -o results
    """
    folders = {"data": data, "truth": truth, "restored": restored, "input": degraded}
    _check(truth, restored, degraded, shard, output, save)
    cases = _cases(data, truth, restored, degraded, layout, split, weather)
    settings: dict[str, Any] = {name: str(path) for name, path in folders.items() if path}
    settings |= {"layout": layout, "split": split, "weather": weather}
    opener = None
    if truth is None and restored is None:
        opener = _Opener(model, device, gpu, dtype, tile, tile_overlap, threads)
    run = Run(cases, protocols, output, opener, settings, restart, save)
    index, _, count = shard.partition("/")
    raise typer.Exit(run.watch((int(index), int(count)), processes))


def _check(
    truth: Path | None,
    restored: Path | None,
    degraded: Path | None,
    shard: str,
    output: Path | None,
    save: Path | None,
) -> None:
    """Options that contradict each other."""
    if truth is not None and restored is not None:
        raise typer.BadParameter(
            "with TRUTH the first folder holds the restored pictures", param_hint="'--restored'"
        )
    if truth is None and degraded is not None:
        raise typer.BadParameter("it needs TRUTH; DATA has its inputs", param_hint="'--input'")
    if save is not None and (truth is not None or restored is not None):
        raise typer.BadParameter("nothing is restored here", param_hint="'--save'")
    if shard != "1/1" and output is None:
        raise typer.BadParameter(
            "needs --output, the folder where the parts come together", param_hint="'--shard'"
        )


def _cases(
    data: Path,
    truth: Path | None,
    restored: Path | None,
    degraded: Path | None,
    layout: str,
    split: str | None,
    weather: str | None,
) -> list[Case]:
    from clipweather_fast.data import DatasetError
    from clipweather_fast.evaluation import cases_of_dataset, cases_of_folders, with_restored

    try:
        if truth is not None:
            return cases_of_folders(data, truth, degraded)
        cases = cases_of_dataset(data, layout=layout, split=split, weather=weather)
    except (DatasetError, InputError, ValueError) as error:
        raise typer.BadParameter(shown(error), param_hint="'DATA'") from None
    return cases if restored is None else with_restored(cases, restored)


@dataclass(frozen=True)
class _Opener:
    """How to open the network, here and in other processes."""

    model: str
    device: str
    gpu: int | None
    dtype: options.Dtype
    tile: str
    tile_overlap: int
    threads: int | None

    def __call__(self) -> Restorer:
        warnings.simplefilter("ignore", PrecisionWarning)
        threads = self.threads
        on_cpu = self.device == "cpu" or (
            self.device == "auto" and self.gpu is None and not torch.cuda.is_available()
        )
        if threads is None and on_cpu:
            threads = 1
        return options.opened(**(vars(self) | {"threads": threads, "fp32": False}))

    def settings(self, restorer: Restorer) -> dict[str, Any]:
        """What the figures depend on."""
        cpu = restorer.device.type == "cpu"
        config = getattr(restorer.model, "config", None)
        return {
            "model": self.model,
            "config": None if config is None else asdict(config),
            "device": restorer.device.type,
            "dtype": self.dtype.value,
            "tile": self.tile,
            "tile_overlap": self.tile_overlap,
            "threads": torch.get_num_threads() if cpu else None,
        }


@dataclass
class Run:
    """An evaluation under a progress bar."""

    cases: list[Case]
    protocols: list[str]
    output: Path | None
    opener: _Opener | None
    settings: dict[str, Any]
    restart: bool
    save: Path | None
    scored: int = 0
    known: int = 0
    failed: int = 0

    def watch(self, shard: tuple[int, int], processes: int | None) -> int:
        """Evaluates, prints tables and writes files; the exit code."""
        from clipweather_fast.evaluation import JournalError, evaluate

        began = time.perf_counter()
        processors = torch.get_num_threads()  # before the opener takes fewer
        restorer = None
        if self.opener is not None:
            restorer = self.opener()
            self.settings |= self.opener.settings(restorer)
        here = len(range(shard[0] - 1, len(self.cases), shard[1]))
        if processes is None:
            processes = _processes(restorer, processors, here)
        try:
            with Bar(here, "pictures", "evaluating") as bar:
                result = evaluate(
                    restorer,
                    self.cases,
                    self.protocols,
                    output=self.output,
                    settings=self.settings,
                    shard=shard,
                    restart=self.restart,
                    save=self.save,
                    processes=processes,
                    open_restorer=self.opener,
                    progress=self._progress(bar),
                )
            _print(result)
            drawn = self._gallery(result, restorer)
        except KeyboardInterrupt:
            typer.echo(f"interrupted: {self._summary(began)}{self._goes_on()}", err=True)
            return 130
        except JournalError as error:
            raise typer.BadParameter(
                f"{shown(error)} (--restart)", param_hint="'--output' / '-o'"
            ) from None
        except (OSError, RuntimeError) as error:
            typer.echo(f"clipweather eval: {shown(error)}", err=True)
            return 1
        typer.echo(self._summary(began), err=True)
        self._say_what_others_do(result)
        return int(self.failed > 0 or not drawn)

    def _progress(self, bar: Bar) -> Callable[[Record, bool], None]:
        def advance(record: Record, known: bool) -> None:
            if known:
                self.known += 1
                bar.left_out()
                return
            if record.error is None:
                self.scored += 1
            else:
                self.failed += 1
                bar.say(f"{shown(record.name)}: {shown(record.error)}")
            bar.advance()

        return advance

    def _gallery(self, result: Evaluation, restorer: Restorer | None) -> bool:
        """Draws the contact sheets once all is scored; False if that failed."""
        from clipweather_fast.evaluation import write_gallery

        if self.output is None or result.missing:
            return True
        try:
            write_gallery(result, self.cases, restorer, self.output, SHOWN)
        except (ArithmeticError, MemoryError, OSError, RuntimeError, ValueError) as error:
            typer.echo(f"the contact sheets could not be drawn: {shown(error)}", err=True)
            return False
        return True

    def _say_what_others_do(self, result: Evaluation) -> None:
        """What this shard's results lack."""
        elsewhere = len(result.failed) - self.failed
        if result.missing:
            words = (
                f"{result.missing} of {len(self.cases)} pictures are left to other shards; the "
                "last one writes the results"
            )
        elif elsewhere > 0:
            words = (
                f"{elsewhere} pictures of other shards have no scores; the same command without "
                "--shard tries them again"
            )
        else:
            return
        typer.echo(words, err=True)

    def _summary(self, began: float) -> str:
        seconds = time.perf_counter() - began
        counts = [f"{self.scored} scored"]
        counts += [f"{self.known} known from before"] * (self.known > 0)
        counts += [f"{self.failed} failed"] * (self.failed > 0)
        return f"{', '.join(counts)} ({seconds:.1f} s, {self.scored / seconds:.3g} pictures/s)"

    def _goes_on(self) -> str:
        return "" if self.output is None else "; the same command goes on from there"


def _processes(restorer: Restorer | None, processors: int, pictures: int) -> int:
    """As many as are of use: a process takes seconds to begin."""
    if restorer is None or restorer.device.type != "cpu":
        return 1
    free = available_bytes(restorer.device)
    room = processors if free is None else free // MEMORY
    return int(max(1, min(processors // torch.get_num_threads(), room, pictures // 4)))


def _print(result: Evaluation) -> None:
    from clipweather_fast.cli._score_tables import print_tables

    print_tables(result)
