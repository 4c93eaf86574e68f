"""The command as a stranger runs it, and small pictures and networks to run it on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from clipweather_fast.cli import app
from clipweather_fast.models import create_model
from clipweather_fast.restore import Restorer

COMMAND = [sys.executable, "-P", "-m", "clipweather_fast.cli"]


def clipweather(
    *arguments: str | Path, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """The finished command; what it printed is in ``stdout`` and ``stderr``."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        errors="surrogateescape",
        timeout=120,
        check=False,
    )


def here(*arguments: str | Path, **variables: str) -> Any:
    """The command in this process, with these environment variables: no interpreter has to start.

    What a user would see as a traceback comes out as the exception.
    """
    return CliRunner().invoke(
        app, [*map(str, arguments)], env=variables, prog_name="clipweather", catch_exceptions=False
    )


def words(text: str) -> str:
    """A message without the frame and the line breaks that the terminal's width gives it."""
    return re.sub(r"[\s│╭╮╰╯─]+", " ", text)


def save_small_network(folder: Path) -> Path:
    """A checkpoint of a network that runs in milliseconds."""
    torch.manual_seed(0)
    network = create_model(
        "clipweather_tiny",
        dims=(8, 16, 16, 32),
        depths=(1, 1, 1, 1),
        prior_encoder="convolutional:32",
        prior_dim=32,
        prior_width=32,
        prior_blocks=1,
        gamma_init=0.5,
        residual_output=False,  # untrained, it would give back what it gets
    )
    network.save_pretrained(folder)
    return folder


def restorer_with_one_thread(folder: Path) -> Restorer:
    """A checkpoint's network on the CPU, in a way that other processes can repeat bit for bit."""
    torch.set_num_threads(1)
    return Restorer(folder, device="cpu", dtype="float32")


def in_snow(photograph: NDArray[np.uint8], seed: int = 0) -> NDArray[np.uint8]:
    """A photograph with flakes over it and a veil before it."""
    random = np.random.default_rng(seed)
    flakes = random.random(photograph.shape[:2]) < 0.01
    for shift in (1, 2):
        flakes |= np.roll(flakes, shift, axis=0) | np.roll(flakes, shift, axis=1)
    veiled = photograph * 0.8 + 40
    snowed: NDArray[np.uint8] = np.where(flakes[..., None], 250, veiled).astype(np.uint8)
    return snowed


def is_whole(path: Path) -> bool:
    """Whether a picture file can be decoded to its end."""
    with Image.open(path) as image:
        image.load()
    return True
