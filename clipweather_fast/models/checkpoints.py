"""Networks in files: folders of this package, and the ``.pth`` files of the field.

A folder holds ``model.safetensors`` and ``config.json``, the shape of huggingface_hub's model
mixin, and ``text_features.safetensors`` if the network can name the weather. Other people's files
are data: safetensors, or ``torch.load`` with ``weights_only=True``.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from clipweather_fast.models.clip_weather import ClipWeather
    from clipweather_fast.models.network import RestorationNetwork

__all__ = [
    "fitting_state",
    "load_checkpoint",
    "load_classifier",
    "push",
    "read_config",
    "read_state_dict",
    "resolved",
    "save",
]

WEIGHTS, CONFIG, TEXT = "model.safetensors", "config.json", "text_features.safetensors"
#: Endings of files; what else follows a dot belongs to a name.
SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin", ".tar", ".pkl", ".json")
#: Keys under which others keep a state dict, the best one first (averages before single steps).
WRAPPERS = (
    "params_ema",
    "state_dict_ema",
    "model_ema",
    "params",
    "state_dict",
    "model_state_dict",
    "model",
    "module",
)
#: Wrappers may be nested; a file from a stranger may hold one inside itself.
DEEPEST = 8
#: What ``torch.optim.swa_utils.AveragedModel`` counts beside the averages.
COUNTER = "n_averaged"
#: Prefixes that wrappers of modules leave on every name.
PREFIXES = ("module.", "_orig_mod.", "model.")
#: Names listed of each kind when a checkpoint does not fit.
LISTED = 10

Source = str | os.PathLike[str]


def load_checkpoint(network: nn.Module, path: Source) -> None:
    """Loads a checkpoint's tensors into a network, all of them or none.

    Args:
        network: any module; its parameters keep their dtype, device and memory format. Where it is
            wrapped (``DataParallel``, ``torch.compile``), the module inside is loaded.
        path: a folder with ``model.safetensors``, a ``.safetensors`` file, or a file of
            ``torch.save`` (read with ``weights_only=True``): a state dict, or one under
            ``params_ema``, ``params``, ``state_dict``, ``model`` or ``module``, with or without the
            prefix ``module.``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read as data, or if names, shapes or kinds of numbers do
            not fit; the message lists the first ten each way, and nothing is loaded.
    """
    inner = _inside(network)
    inner.load_state_dict(fitting_state(inner, path))


def fitting_state(network: nn.Module, path: Source) -> dict[str, Tensor]:
    """A checkpoint's tensors, by the network's names; nothing is loaded.

    Arguments and errors as :func:`load_checkpoint`; the network may be on the meta device.
    """
    file = Path(path)
    file = file / WEIGHTS if file.is_dir() else file
    state = _without_prefixes(read_state_dict(file), set(network.state_dict()))
    reasons = _misfits(network.state_dict(), state)
    if reasons:
        raise ValueError(
            f"load_checkpoint: {file} does not fit {type(network).__name__}; nothing was loaded\n"
            + "\n".join(reasons)
        )
    return state


def _inside(network: nn.Module) -> nn.Module:
    """The module that wrappers of modules are around."""
    while True:
        compiled = network._modules.get("_orig_mod")
        if compiled is not None:
            network = compiled
        elif isinstance(network, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            network = network.module
        else:
            return network


def read_state_dict(file: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, wrappers opened, on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds anything but tensors, or cannot be read.
    """
    if not file.is_file():
        raise FileNotFoundError(f"load_checkpoint: there is no file {file}")
    # Whatever is wrong with a stranger's file is that file's fault; the readers raise many types.
    try:
        content = _read(file)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise ValueError(
            f"load_checkpoint: {file} cannot be read as a checkpoint of tensors alone: "
            f"{type(error).__name__}: {reason}"
        ) from error
    state = _unwrapped(content)
    if state is None:
        raise ValueError(f"load_checkpoint: {file} holds no state dict (tensors by name)")
    return state


def _read(file: Path) -> Any:
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(file)
    return torch.load(file, map_location="cpu", weights_only=True)


def _unwrapped(content: Any, depth: int = DEEPEST) -> dict[str, Tensor] | None:
    """The state dict inside, wrapped so many times at most."""
    if not isinstance(content, Mapping) or depth == 0:
        return None
    for name in WRAPPERS:
        if isinstance(content.get(name), Mapping):
            found = _unwrapped(content[name], depth - 1)
            if found is not None:
                return found
    if not content or not all(isinstance(key, str) for key in content):
        return None
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return tensors if len(tensors) == len(content) else None


def _without_prefixes(state: dict[str, Tensor], wanted: set[str]) -> dict[str, Tensor]:
    """``state`` without a prefix that all its names have and the network's have not."""
    if COUNTER in state and COUNTER not in wanted:
        state = {name: value for name, value in state.items() if name != COUNTER}
    again = True
    while again and state:
        again = False
        for prefix in PREFIXES:
            ours = any(name.startswith(prefix) for name in wanted)
            if not ours and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): value for name, value in state.items()}
                again = True
    return state


def _misfits(wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> list[str]:
    """Why a state dict does not fit, a line for each kind of reason."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} where {tuple(wanted[name].shape)} is expected"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    # They would be copied as if they were what the network computes with: quantised ones, say.
    numbers = [
        f"{name} {found[name].dtype} where {wanted[name].dtype} is expected"
        for name in wanted
        if name in found and found[name].is_floating_point() != wanted[name].is_floating_point()
    ]
    kinds = (
        ("missing in the checkpoint", missing),
        ("not in the network", unexpected),
        ("of another shape", shapes),
        ("of another kind of numbers", numbers),
    )
    return [_line(kind, names) for kind, names in kinds if names]


def _line(kind: str, names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f"  {len(names)} {kind}: {', '.join(names[:LISTED])}{more}"


# ---- folders -----------------------------------------------------------------------------------


def save(network: RestorationNetwork, folder: Source) -> None:
    """Writes ``model.safetensors`` and ``config.json``, made if there is no such folder.

    A classifier's text features are written as ``text_features.safetensors``; without one such a
    file is removed, since it belongs to the weights that are replaced. Each file is written aside
    and then renamed: an interruption leaves the old one or the new one.
    """
    from safetensors.torch import save_file

    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    tensors = _apart(network.state_dict())
    text = json.dumps(network.config.to_dict(), indent=2) + "\n"
    classifier = getattr(network, "classifier", None)
    _written_aside(target / WEIGHTS, lambda file: save_file(tensors, file, {"format": "pt"}))
    if classifier is None:
        (target / TEXT).unlink(missing_ok=True)
    else:
        _written_aside(target / TEXT, classifier.save)
    _written_aside(target / CONFIG, lambda file: Path(file).write_text(text, encoding="utf-8"))


def _apart(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Dense tensors; those that share their memory (tied ones) once for each name."""
    tensors: dict[str, Tensor] = {}
    known: set[int] = set()
    for name, tensor in state.items():
        tensor = tensor.contiguous()
        if tensor.data_ptr() in known:
            tensor = tensor.clone()
        known.add(tensor.data_ptr())
        tensors[name] = tensor
    return tensors


def load_classifier(network: ClipWeather, folder: Path) -> None:
    """Gives the network the classifier whose text features are in a folder, if there are any.

    Raises:
        ValueError: if the file holds something else, or features of another length.
    """
    file = folder / TEXT
    if file.is_file():
        from clipweather_fast.clip import WeatherClassifier

        try:
            network.classifier = WeatherClassifier.load(file)
        except ValueError as error:
            raise ValueError(f"from_pretrained: {file} does not fit: {error}") from error


def _written_aside(target: Path, write: Callable[[str], Any]) -> None:
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as folder:
        aside = Path(folder) / target.name
        # Writers replace it by a file that its owner alone reads; a checkpoint is an ordinary file.
        # Asking for the umask would mean to change it for all threads.
        aside.touch()
        mode = stat.S_IMODE(aside.stat().st_mode)
        write(str(aside))
        aside.chmod(mode)
        os.replace(aside, target)


def read_config(folder: Path) -> dict[str, Any]:
    """The fields of a folder's ``config.json``.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a JSON object.
    """
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(f"from_pretrained: there is no file {file}")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"from_pretrained: {file} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(
            f"from_pretrained: {file} must hold an object, got {type(values).__name__}"
        )
    return values


def resolved(source: Source, hub: Mapping[str, Any] | None = None) -> Path:
    """The folder (or single file) that a source names; a hub's files are downloaded once.

    Args:
        source: a path, ``"local-dir:FOLDER"``, ``"hf-hub:OWNER/NAME[@REVISION]"`` or
            ``"OWNER/NAME"``; a path that exists comes first.
        hub: further arguments of ``huggingface_hub.hf_hub_download``.

    Raises:
        FileNotFoundError: if there is no such path and it cannot be a repository's name.
    """
    text = os.fspath(source)
    scheme, _, rest = text.partition(":")
    if scheme == "hf-hub":
        return _downloaded(rest, hub or {})
    path = Path(rest if scheme == "local-dir" else text).expanduser()
    if path.exists():
        return path
    owner, _, name = text.partition("/")
    plain = all(part and not part.startswith(".") for part in (owner, name)) and "/" not in name
    if scheme != "local-dir" and plain and not text.endswith(SUFFIXES):
        return _downloaded(text, hub or {})
    raise FileNotFoundError(
        f"there is no file or folder {path}; a source is a path, 'local-dir:FOLDER' or "
        f"'hf-hub:OWNER/NAME'"
    )


def _downloaded(repository: str, options: Mapping[str, Any]) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    name, _, revision = repository.partition("@")
    arguments = {**options, "revision": revision} if revision else dict(options)
    hf_hub_download(name, WEIGHTS, **arguments)
    folder = Path(hf_hub_download(name, CONFIG, **arguments)).parent
    with contextlib.suppress(EntryNotFoundError):  # most networks have none
        hf_hub_download(name, TEXT, **arguments)
    return folder


def push(
    network: RestorationNetwork,
    repo_id: str,
    *,
    commit_message: str,
    private: bool | None,
    token: str | None,
    branch: str | None,
    create_pr: bool | None,
) -> str:
    """Uploads what :func:`save` writes to a repository of the hub, made if there is none."""
    from huggingface_hub import HfApi

    hub = HfApi(token=token)
    repository = hub.create_repo(repo_id=repo_id, private=private, exist_ok=True).repo_id
    with tempfile.TemporaryDirectory() as folder:
        save(network, folder)
        commit = hub.upload_folder(
            repo_id=repository,
            repo_type="model",
            folder_path=folder,
            commit_message=commit_message,
            revision=branch,
            create_pr=create_pr,
        )
    return str(commit)
