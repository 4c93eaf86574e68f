"""``clipweather video``."""

from __future__ import annotations

import os
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipweather_fast.cli import _options as options
from clipweather_fast.cli._progress import Bar, shown
from clipweather_fast.cli._stopping import exit_code, stoppable

__all__ = ["video"]


class Codec(StrEnum):
    """Encoders by the name of their codec."""

    auto = "auto"
    h264 = "h264"
    h265 = "h265"
    vp9 = "vp9"
    av1 = "av1"
    ffv1 = "ffv1"


def video(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="IN", exists=True, dir_okay=False, help="A video.", show_default=False
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="The video to write (.mp4, .mov, .mkv, .webm), or a folder.",
            show_default=False,
        ),
    ],
    model: options.ModelOption = options.DEFAULT_MODEL,
    codec: Annotated[
        Codec, typer.Option(help="auto is H.264, H.265 above 8 bits, VP9 in .webm.")
    ] = Codec.auto,
    quality: Annotated[
        int,
        typer.Option(
            "--crf", min=0, max=63, help="Constant rate factor; less is better and larger."
        ),
    ] = 16,
    prior_limit: Annotated[
        float,
        typer.Option(
            help="Frames share a weather prior while their 32 x 32 thumbnails differ by at most "
            "this, in the mean of [0, 1]; -1 computes it for each."
        ),
    ] = 0.02,
    tile: options.TileOption = "auto",
    tile_overlap: options.TileOverlapOption = 32,
    device: options.DeviceOption = "auto",
    gpu: options.GpuOption = None,
    dtype: options.DtypeOption = options.Dtype.auto,
    fp32: options.Float32Option = False,
    threads: options.ThreadsOption = None,
) -> None:
    """Restore a video; sound, subtitles, times and number of frames stay, transparency does not.

    The video appears when it is complete: after Ctrl-C or an error there is none. If the source is
    damaged, what can be read is restored, the rest is counted, and the exit code is 1. Needs
    PyAV: pip install 'clipweather_fast[video]'.

    Example: clipweather video drive.mp4 -o clear.mp4
    """
    from clipweather_fast.restore.video import CONTAINERS, VideoError, restore_video

    target = output / source.name if os.path.isdir(output) else output
    problem = None
    if target.suffix.lower() not in CONTAINERS:
        problem = f"{shown(target)} must end in {', '.join(CONTAINERS)}"
    elif os.path.exists(target) and target.samefile(source):
        problem = f"{shown(target)} is the input"
    elif not os.path.isdir(target.parent):
        problem = f"there is no folder {shown(target.parent)}"
    if problem is not None:
        raise typer.BadParameter(problem, param_hint="'--output' / '-o'")
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
    began = time.perf_counter()
    try:
        with stoppable(), Bar(None, "frames") as bar:
            done = restore_video(
                source,
                target,
                restorer,
                codec=codec.value,
                quality=quality,
                prior_limit=prior_limit,
                progress=bar.reached,
            )
    except KeyboardInterrupt as stop:
        typer.echo(f"interrupted: {shown(target)} was not written", err=True)
        raise typer.Exit(exit_code(stop)) from None
    except (ArithmeticError, ImportError, MemoryError, OSError, VideoError) as error:
        typer.echo(f"clipweather video: {shown(error)}", err=True)
        raise typer.Exit(1) from None
    seconds = time.perf_counter() - began
    typer.echo(
        f"{done.frames} frames, {done.priors} priors "
        f"({seconds:.1f} s, {done.frames / seconds:.3g} frames/s)",
        err=True,
    )
    if done.transparent:
        typer.echo(f"{shown(source)}: its transparency was left out", err=True)
    if done.missing or done.broken:
        typer.echo(
            f"{shown(source)} is damaged: {done.missing} frames are missing, {done.broken} packets "
            f"or frames are broken; {shown(target)} has the rest",
            err=True,
        )
        raise typer.Exit(1)
