"""``clipweather export``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from clipweather_fast.cli import _options as options
from clipweather_fast.cli._progress import shown

__all__ = ["export"]


def export(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A folder, a checkpoint file, hf-hub:OWNER/NAME or a name, as for restore -n.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", dir_okay=False, help="The .onnx file to write.", show_default=False
        ),
    ],
    prior_input: Annotated[
        bool,
        typer.Option(
            "--prior-input",
            help="Leave the prior encoder out; the weather prior becomes a second input.",
        ),
    ] = False,
) -> None:
    """Write a network as an ONNX file for pictures of any size and number.

    The file is compared with PyTorch on two sizes before it is kept. Needs onnx, onnxruntime and
    onnxscript: pip install 'clipweather_fast[onnx]'. Takes a minute or two.

    Example: clipweather export checkpoint/ -o model.onnx
    """
    if output.suffix.lower() != ".onnx":
        raise typer.BadParameter(
            f"{shown(output)} must end in .onnx", param_hint="'--output' / '-o'"
        )
    if not os.path.isdir(output.parent):
        raise typer.BadParameter(
            f"there is no folder {shown(output.parent)}", param_hint="'--output' / '-o'"
        )
    network = options.loaded(model)
    from clipweather_fast.export import export_onnx

    try:
        checks = export_onnx(network, output, prior_input=prior_input)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        typer.echo(f"clipweather export: {shown(error)}", err=True)
        raise typer.Exit(1) from None
    for check in checks:
        n, height, width = check.size
        typer.echo(f"{n} x 3 x {height} x {width}: differs from PyTorch by {check.difference:.1e}")
