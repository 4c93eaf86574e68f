"""Checkpoints: others' wrappers, misfits, hostile files, interrupted writes, the hub."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import torch
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from clipweather_fast.models import ClipWeather, checkpoints, load_checkpoint
from clipweather_fast.models.checkpoints import resolved
from small_networks import photograph, prior_of, small


def linear() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def other_state() -> dict[str, torch.Tensor]:
    return {name: torch.randn_like(t) for name, t in linear().state_dict().items()}


def refused(content: Any, folder: Path, words: str) -> None:
    torch.save(content, folder / "x.pth")
    with pytest.raises(ValueError, match=words):
        load_checkpoint(linear(), folder / "x.pth")


def assert_loaded(network: nn.Module, state: dict[str, torch.Tensor]) -> None:
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name


# ---- others' files -----------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model.", "module._orig_mod."])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"params": state},
        lambda state: {"params": {k: v + 1 for k, v in state.items()}, "params_ema": state},
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"state": {}}},
        lambda state: {"model": {"state_dict": state}},
        lambda state: {"module": state, "step": 5},
        lambda state: {"state_dict": {k: v + 1 for k, v in state.items()}, "state_dict_ema": state},
        lambda state: {"n_averaged": torch.tensor(4), **state},
    ],
    ids=["bare", "params", "params_ema", "state_dict", "nested", "module", "timm", "averaged"],
)
def test_the_usual_wrappers(wrap: Any, prefix: str, tmp_path: Path) -> None:
    network, state = linear(), other_state()
    file = tmp_path / "net.pth"
    torch.save(wrap({prefix + name: tensor for name, tensor in state.items()}), file)
    load_checkpoint(network, file)
    assert_loaded(network, state)


@pytest.mark.parametrize("wrap", [nn.DataParallel, torch.compile, lambda n: nn.DataParallel(n)])
def test_a_wrapped_network_is_loaded_inside(wrap: Any, tmp_path: Path) -> None:
    network, state = linear(), other_state()
    for prefix in ("", "module."):
        torch.save({prefix + name: t for name, t in state.items()}, tmp_path / "x.pth")
        load_checkpoint(wrap(network), tmp_path / "x.pth")
        assert_loaded(network, state)
        network = linear()


def test_safetensors_and_folders(tmp_path: Path) -> None:
    network, state = linear(), other_state()
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    for path in (tmp_path, tmp_path / "model.safetensors", str(tmp_path)):
        fresh = linear()
        load_checkpoint(fresh, path)
        assert_loaded(fresh, state)
    assert_loaded(network, linear().state_dict())


def test_a_network_that_has_the_prefix_keeps_it(tmp_path: Path) -> None:
    network = nn.ModuleDict({"module": linear()})
    state = {f"module.{name}": tensor for name, tensor in other_state().items()}
    torch.save(state, tmp_path / "x.pth")
    load_checkpoint(network, tmp_path / "x.pth")
    assert_loaded(network, state)


def test_dtype_and_memory_format_stay_the_network_s(tmp_path: Path) -> None:
    network = nn.Conv2d(3, 4, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    strides = network.weight.stride()
    torch.save(nn.Conv2d(3, 4, 3).state_dict(), tmp_path / "x.pth")
    load_checkpoint(network, tmp_path / "x.pth")
    assert network.weight.dtype == torch.bfloat16
    assert network.weight.stride() == strides


# ---- what does not fit -------------------------------------------------------------------------


def test_a_misfit_lists_ten_each_way_and_loads_nothing(tmp_path: Path) -> None:
    network = small("TransWeather")
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    state = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
    names = list(state)
    for i in range(12):
        state[f"stranger{i}"] = state.pop(names[i])
    state["clean.conv2d.bias"] = torch.zeros(7)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(ValueError, match="does not fit TransWeather; nothing was loaded") as caught:
        load_checkpoint(network, tmp_path / "x.pth")
    _, missing, unexpected, shapes = str(caught.value).splitlines()
    assert missing == f"  12 missing in the checkpoint: {', '.join(names[:10])}, and 2 more"
    strangers = ", ".join(f"stranger{i}" for i in range(10))
    assert unexpected == f"  12 not in the network: {strangers}, and 2 more"
    assert shapes == "  1 of another shape: clean.conv2d.bias (7,) where (3,) is expected"
    assert_loaded(network, before)


class Exploit:
    """What a pickle may do: run a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.target),)


def hostile(name: str, folder: Path) -> Path:
    file = folder / f"{name}.pth"
    good = folder / "good.pth"
    torch.save(other_state(), good)
    if name == "empty":
        file.touch()
    elif name == "text":
        file.write_text("not a checkpoint\n" * 50)
    elif name == "truncated":
        file.write_bytes(good.read_bytes()[:-200])
    elif name == "pickle":
        file.write_bytes(pickle.dumps(Exploit(folder / "pwned")))
    elif name == "torch pickle":
        torch.save({"state_dict": Exploit(folder / "pwned")}, file)
    elif name == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("a/b", "c")
    elif name == "safetensors":
        file = folder / "x.safetensors"
        file.write_bytes((1 << 60).to_bytes(8, "little") + b"{}")
    return file


@pytest.mark.parametrize(
    "name", ["empty", "text", "truncated", "pickle", "torch pickle", "zip", "safetensors"]
)
def test_a_file_that_is_no_checkpoint_is_named_and_runs_nothing(name: str, tmp_path: Path) -> None:
    file, network = hostile(name, tmp_path), linear()
    with pytest.raises(
        ValueError, match="cannot be read as a checkpoint of tensors alone"
    ) as error:
        load_checkpoint(network, file)
    assert str(file) in str(error.value)
    assert not (tmp_path / "pwned").exists()
    assert_loaded(network, linear().state_dict())


@pytest.mark.parametrize("content", [[1, 2], {"lr": 0.1}, {}, {1: torch.ones(1)}, torch.ones(2)])
def test_tensors_by_name_or_nothing(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(ValueError, match=r"x\.pth holds no state dict"):
        load_checkpoint(linear(), tmp_path / "x.pth")


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"lr": 0.1}
    content["state_dict"] = content
    refused(content, tmp_path, "holds no state dict")


@pytest.mark.parametrize("dtype", [torch.int8, torch.complex64, torch.bool])
def test_other_kinds_of_numbers_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    state = other_state()
    state["0.weight"] = state["0.weight"].to(dtype)
    words = rf"1 of another kind of numbers: 0\.weight {dtype} where torch\.float32 is expected"
    refused(state, tmp_path, words)


def test_tied_parameters_are_saved_once_for_each_name(tmp_path: Path) -> None:
    network = small()
    block = network.encoder.block2  # type: ignore[union-attr]
    block[1].mlp.fc1.weight = block[0].mlp.fc1.weight  # type: ignore[index, union-attr]
    network.save_pretrained(tmp_path)
    assert_loaded(ClipWeather.from_pretrained(tmp_path), network.state_dict())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_rounded_to_the_network_s(dtype: torch.dtype, tmp_path: Path) -> None:
    network = small().to(dtype)
    network.save_pretrained(tmp_path)
    loaded = ClipWeather.from_pretrained(tmp_path)
    for name, tensor in loaded.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, network.state_dict()[name].float()), name


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no file .*gone\.pth"):
        load_checkpoint(linear(), tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match=r"there is no file .*model\.safetensors"):
        load_checkpoint(linear(), tmp_path)


# ---- folders -----------------------------------------------------------------------------------


def test_a_folder_holds_two_ordinary_files(tmp_path: Path) -> None:
    network = small()
    folder = tmp_path / "deep" / "er"
    network.save_pretrained(folder)
    network.save_pretrained(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    (tmp_path / "plain").touch()
    modes = {path.stat().st_mode for path in (*folder.iterdir(), tmp_path / "plain")}
    assert len(modes) == 1
    values = json.loads((folder / "config.json").read_text())
    assert values["architecture"] == "ClipWeather"
    assert not [name for name in network.state_dict() if name.startswith("prior_encoder")]


def test_an_interrupted_write_leaves_the_old_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = small()
    network.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def interrupted(tensors: Any, file: str, metadata: Any) -> None:
        Path(file).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(safetensors.torch, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        network.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object, got list"),
        ("[" * 100_000, "is not JSON"),
        ("{}", "must name an architecture"),
        ('{"architecture": "Restormer"}', r"\(ClipWeather, TransWeather\), got 'Restormer'"),
        ('{"architecture": ["ClipWeather"]}', "must name an architecture"),
        ('{"architecture": "ClipWeather", "gama": 1}', "no field 'gama'"),
    ],
)
def test_a_wrong_configuration_is_named(text: str, words: str, tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=words):
        ClipWeather.from_pretrained(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no file .*config\.json"):
        ClipWeather.from_pretrained(tmp_path)


def test_a_configuration_takes_no_more_memory_than_its_tensors(tmp_path: Path) -> None:
    """What a stranger's file asks for is compared with what it brings before it is made."""
    small().save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    values |= {"dims": [8192] * 4, "depths": [16] * 4, "reductions": [8192] * 4}
    values |= {"mlp_ratio": 64, "prior_tokens": 8192, "prior_width": 8192}
    (tmp_path / "config.json").write_text(json.dumps(values))
    with pytest.raises(ValueError, match="does not fit ClipWeather; nothing was loaded"):
        ClipWeather.from_pretrained(tmp_path)


# ---- the hub -----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one repository; the calls made to it."""
    calls: list[Any] = []
    repository = tmp_path / "repository"
    small().save_pretrained(repository)

    def download(name: str, file: str, **options: Any) -> str:
        calls.append((name, file, options))
        if not (repository / file).exists():
            raise EntryNotFoundError(file)
        return str(repository / file)

    class Api:
        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", token))

        def create_repo(self, *, repo_id: str, **options: Any) -> Any:
            calls.append(("create", repo_id, options))
            return type("Repository", (), {"repo_id": f"owner/{repo_id}"})

        def upload_folder(self, *, folder_path: str, **options: Any) -> str:
            calls.append(("upload", sorted(os.listdir(folder_path)), options))
            return "address of the commit"

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    return calls


def test_from_the_hub(hub: list[Any]) -> None:
    network = ClipWeather.from_pretrained("hf-hub:me/net@v2", token="secret")
    options = {
        "revision": "v2",
        "cache_dir": None,
        "force_download": False,
        "local_files_only": False,
        "token": "secret",
    }
    assert hub == [
        ("me/net", "model.safetensors", options),
        ("me/net", "config.json", options),
        ("me/net", "text_features.safetensors", options),
    ]
    image = photograph(64, 64)
    with torch.no_grad():
        assert torch.equal(network(image, prior_of(network)), small()(image, prior_of(network)))
    other = ClipWeather.from_pretrained("me/net", revision="v1", prior_weights="x")
    assert other.config.prior_weights == "x"
    assert hub[-1][2]["revision"] == "v1"


def test_to_the_hub(hub: list[Any]) -> None:
    address = small().push_to_hub("net", private=True, token="secret", branch="dev")
    assert address == "address of the commit"
    assert hub[0] == ("token", "secret")
    assert hub[1] == ("create", "net", {"private": True, "exist_ok": True})
    what, files, options = hub[2]
    assert (what, files) == ("upload", ["config.json", "model.safetensors"])
    assert (options["repo_id"], options["revision"]) == ("owner/net", "dev")


def test_a_repository_s_name_may_have_dots(hub: list[Any]) -> None:
    resolved("me/net-1.5.a1_in1k")
    assert hub[0][0] == "me/net-1.5.a1_in1k"


@pytest.mark.parametrize(
    "source", ["nothing", "a/b/c", "./a/b", "../x", "a/b.pth", "local-dir:a/b"]
)
def test_what_cannot_be_a_repository_is_not_asked_for(source: str, hub: list[Any]) -> None:
    with pytest.raises(FileNotFoundError, match="a source is a path, 'local-dir:FOLDER' or"):
        resolved(source)
    assert hub == []


def test_a_path_that_exists_comes_first(
    hub: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "me" / "net").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolved("me/net") == Path("me/net")
    assert resolved("local-dir:me/net") == Path("me/net")
    assert hub == []
    assert checkpoints.resolved(tmp_path) == tmp_path
