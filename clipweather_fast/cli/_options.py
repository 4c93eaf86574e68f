"""The options that several commands share, and what they mean for a :class:`Restorer`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import torch
import typer

if TYPE_CHECKING:
    from clipweather_fast.models import RestorationNetwork
    from clipweather_fast.restore import Restorer

__all__ = [
    "DEFAULT_MODEL",
    "DeviceOption",
    "Dtype",
    "DtypeOption",
    "Float32Option",
    "GpuOption",
    "ModelOption",
    "ShardOption",
    "ThreadsOption",
    "TileOption",
    "TileOverlapOption",
    "loaded",
    "opened",
    "place",
    "tile_size",
]

DEFAULT_MODEL = "clipweather_tiny"


class Dtype(StrEnum):
    """Precisions by name; "auto" is the Restorer's choice for the device."""

    auto = "auto"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"


def _complete_model(incomplete: str) -> list[str]:
    from clipweather_fast.models import list_models

    return [name for name in list_models() if name.startswith(incomplete)]


def _complete_device(incomplete: str) -> list[str]:
    names = ["auto", "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [name for name in names if name.startswith(incomplete)]


def tile_size(value: str) -> int | Literal["auto"] | None:
    """What ``--tile`` means: "auto", None for 0 (never), or the side of a tile."""
    if value == "auto":
        return "auto"
    try:
        size = int(value)
    except ValueError:
        size = -1
    if size < 0:
        raise typer.BadParameter(
            f"{value!r} is neither 'auto' nor a number of pixels (0: whole pictures)",
            param_hint="'--tile' / '-t'",
        )
    return size or None


def _shard(value: str) -> str:
    index, _, count = value.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise typer.BadParameter(f"{value!r} is not i/n with 1 <= i <= n, such as 1/4")
    return value


ModelOption = Annotated[
    str,
    typer.Option(
        "--model",
        "-n",
        metavar="NAME|PATH",
        help="A folder with model.safetensors and config.json, a checkpoint file (.pth, "
        ".safetensors), hf-hub:OWNER/NAME, or the name of a network that comes with weights; "
        "`clipweather models` lists them.",
        autocompletion=_complete_model,
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        metavar="auto|cpu|cuda[:N]",
        help="Where to compute; auto takes a GPU if there is one.",
        autocompletion=_complete_device,
    ),
]
GpuOption = Annotated[
    int | None,
    typer.Option("--gpu", "-g", min=0, help="Compute on this GPU, the same as --device cuda:N."),
]
DtypeOption = Annotated[
    Dtype, typer.Option(help="Precision; auto is bfloat16 where the device is fast at it.")
]
Float32Option = Annotated[bool, typer.Option("--fp32", help="The same as --dtype float32.")]
TileOption = Annotated[
    str,
    typer.Option(
        "--tile",
        "-t",
        metavar="auto|PIXELS",
        help="Side of the tiles that a large picture is cut into; auto cuts only what does not "
        "fit into memory, 0 never cuts.",
    ),
]
TileOverlapOption = Annotated[
    int, typer.Option(min=0, help="Pixels by which tiles overlap and blend.")
]
ShardOption = Annotated[
    str,
    typer.Option(
        metavar="I/N", callback=_shard, help="Do part I of N, each part on another machine."
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(min=1, help="Threads to compute with; by default PyTorch's number."),
]


def place(device: str, gpu: int | None = None) -> str:
    """What ``--device`` and ``--gpu`` name; a wrong one ends the command with its name."""
    if gpu is not None:
        if device not in ("auto", f"cuda:{gpu}"):
            raise typer.BadParameter(
                f"--gpu {gpu} and --device {device} name two devices", param_hint="'--gpu' / '-g'"
            )
        device = f"cuda:{gpu}"
    hint = "'--device'" if gpu is None else "'--gpu' / '-g'"
    if device == "auto":
        return device
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise typer.BadParameter(
            f"{device!r} is none of auto, cpu, cuda, cuda:N", param_hint=hint
        ) from None
    count = torch.cuda.device_count()
    if kind.type == "cuda" and (kind.index or 0) >= count:
        seen = f"{count} GPU{'s' * (count != 1)}" if count else "no GPU"
        raise typer.BadParameter(f"{device} is not there: PyTorch sees {seen}", param_hint=hint)
    return device


def opened(
    model: str,
    *,
    device: str,
    gpu: int | None,
    dtype: Dtype,
    fp32: bool,
    tile: str,
    tile_overlap: int,
    threads: int | None,
) -> Restorer:
    """The Restorer that the options describe; a wrong one ends the command with its name."""
    if fp32:
        if dtype not in (Dtype.auto, Dtype.float32):
            raise typer.BadParameter(
                f"--fp32 and --dtype {dtype.value} contradict each other", param_hint="'--fp32'"
            )
        dtype = Dtype.float32
    size, where = tile_size(tile), place(device, gpu)
    if isinstance(size, int) and tile_overlap >= size:
        raise typer.BadParameter(
            f"tiles of {size} pixels cannot overlap by {tile_overlap}",
            param_hint="'--tile-overlap'",
        )
    if threads is not None:
        torch.set_num_threads(threads)
    from clipweather_fast.restore import Restorer

    network = loaded(model)
    with _blamed_on_the_model():
        restorer = Restorer(
            network, device=where, dtype=dtype.value, tile=size, tile_overlap=tile_overlap
        )
        # A frozen encoder is built when it is first needed: now, rather than for every picture.
        restorer.encode_prior(torch.zeros(1, 3, 32, 32))
    return restorer


def loaded(model: str) -> RestorationNetwork:
    """The network that ``--model`` stands for; a wrong one ends the command with its name."""
    from clipweather_fast import models
    from clipweather_fast.models import registry
    from clipweather_fast.models.recognition import from_file

    with _blamed_on_the_model():
        if model in registry.WEIGHTS:
            return models.create_model(model, pretrained=True)
        path = Path(model.removeprefix("local-dir:")).expanduser()
        if path.is_dir():
            return models.pretrained(path)
        if path.is_file():
            return from_file(path)
        if os.sep in model and not model.startswith("hf-hub:"):
            raise FileNotFoundError(f"there is no file or folder {model}")
        if model in models.list_models():
            raise ValueError(
                f"no weights come with {model}; pass a folder with model.safetensors and "
                "config.json, a checkpoint file or hf-hub:OWNER/NAME"
            )
        return models.create_model(model, pretrained=True)


@contextmanager
def _blamed_on_the_model() -> Iterator[None]:
    try:
        yield
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        words = str(error).removeprefix("create_model: ").removeprefix("from_pretrained: ")
        raise typer.BadParameter(words, param_hint="'--model' / '-n'") from error
