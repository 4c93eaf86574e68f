"""open_clip and timm, imported when an encoder is built, and what is wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

__all__ = ["EncoderUnavailable", "import_open_clip", "import_timm"]


class EncoderUnavailable(RuntimeError):
    """An encoder lacks a package or its weights; the message says what to install or pass."""


def import_open_clip(who: str) -> Any:
    """The module ``open_clip``. ``EncoderUnavailable`` if it is missing or broken."""
    with _explained(who, "open_clip", "open_clip_torch"):
        import open_clip
    return open_clip


def import_timm(who: str) -> Any:
    """The module ``timm``. ``EncoderUnavailable`` if it is missing or broken."""
    with _explained(who, "timm", "timm"):
        import timm
    return timm


@contextmanager
def _explained(who: str, module: str, distribution: str) -> Iterator[None]:
    # Both packages import many others, which warn of one another's age; no caller can act on that.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        # Not ImportError alone: a torchvision that was built for another torch raises RuntimeError
        # at its first import and AttributeError at its second.
        except Exception as error:
            raise EncoderUnavailable(_reason(who, module, distribution, error)) from error


def _reason(who: str, module: str, distribution: str, error: Exception) -> str:
    said = f"{type(error).__name__}: {' '.join(str(error).split())}"
    if isinstance(error, ModuleNotFoundError) and error.name == module:
        return f"{who} needs {module}, which is not installed: pip install {distribution}"
    if "torchvision" in str(error):
        return (
            f"{who} needs {module}, which cannot be imported because torchvision is missing or was "
            f"built for another torch than {torch.__version__} ({said}): install the torchvision "
            "that belongs to it, from the same index as torch"
        )
    return (
        f"{who} needs {module}, which cannot be imported ({said}): "
        f"pip install --force-reinstall {distribution}"
    )
