"""Where weights come from, and that a file from a stranger stays data."""

from __future__ import annotations

import json
import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tiny_clip
from clipweather_fast.clip import EncoderUnavailable, build_prior_encoder, build_text_encoder
from clipweather_fast.clip.weights import load_strictly, read_state_dict

STATE_KEY = "visual.conv1.weight"


@pytest.fixture
def state() -> dict[str, Tensor]:
    return tiny_clip.clip_weights()


def prior(weights: Any, kind: str = tiny_clip.KIND) -> Tensor:
    image = torch.rand(1, 3, 40, 30, generator=torch.Generator().manual_seed(1))
    return build_prior_encoder(kind, weights)(image)


def put(folder: Path, state: dict[str, Tensor], name: str = "open_clip_model.safetensors") -> str:
    """A folder as open_clip writes it."""
    save_file(state, folder / name)
    config = {"model_cfg": tiny_clip.MODELS[tiny_clip.NAME], "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return f"local-dir:{folder}"


def write(kind: str, state: dict[str, Tensor], folder: Path) -> str | Path:
    """The same weights in one of the forms that people have them in."""
    path = folder / "weights.pt"
    if kind == "folder":
        return put(folder, state)
    if kind == "safetensors":
        path = folder / "weights.safetensors"
        save_file(state, path)
    elif kind == "legacy":
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif kind == "training":
        prefixed = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "name": "run", "state_dict": prefixed}, path)
    elif kind == "tower":
        torch.save(tiny_clip.part(state, "visual."), path)
    else:
        extra = {name: torch.tensor(7) for name in ("input_resolution", "context_length")}
        torch.save(state | extra | {"vocab_size": torch.tensor(49408)}, path)
    return path if kind == "safetensors" else str(path)


@pytest.mark.parametrize("kind", ["folder", "safetensors", "legacy", "training", "tower", "openai"])
def test_every_form_of_the_same_weights_loads(
    kind: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    assert torch.equal(prior(write(kind, state, tmp_path)), prior(state))


def test_half_precision_files_become_float32(state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(half, tmp_path / "half.safetensors")
    encoder = build_prior_encoder(tiny_clip.KIND, tmp_path / "half.safetensors")
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    expected = {k: v.float() if v.is_floating_point() else v for k, v in half.items()}
    assert torch.equal(prior(tmp_path / "half.safetensors"), prior(expected))


def test_the_caller_s_tensors_are_copied(state: dict[str, Tensor]) -> None:
    encoder = build_prior_encoder(tiny_clip.KIND, state)
    image = torch.rand(1, 3, 9, 9)
    before = encoder(image)
    state[STATE_KEY].zero_()
    assert torch.equal(encoder(image), before)


# ---- sources that are not files ------------------------------------------------------------------


def test_hub_repositories_load_at_a_revision(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.errors import EntryNotFoundError

    put(tmp_path, state, "model.safetensors")
    asked = []

    def from_folder(repository: str, name: str, revision: str | None) -> str:
        asked.append((repository, name, revision))
        if not (tmp_path / name).is_file():
            raise EntryNotFoundError(name)
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", from_folder)
    assert torch.equal(prior("hf-hub:someone/clip@v2"), prior(state))
    assert asked == [
        ("someone/clip", "open_clip_config.json", "v2"),
        ("someone/clip", "open_clip_model.safetensors", "v2"),
        ("someone/clip", "model.safetensors", "v2"),
    ]


def test_a_hub_that_cannot_be_reached_says_what_to_pass() -> None:
    with pytest.raises(
        EncoderUnavailable, match=r"hf-hub:someone/clip \(LocalEntry.*; pass a file"
    ):
        prior("hf-hub:someone/clip")
    with pytest.raises(EncoderUnavailable, match=r"hf-hub:timm/tf_efficientnet_lite0.in1k \(Local"):
        build_prior_encoder("imagenet", "in1k")


def test_open_clip_s_tags_are_known_before_they_are_fetched(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "clip:ViT-B-32-quickgelu"
    with pytest.raises(
        EncoderUnavailable, match=r"'openai' could not be downloaded .*; pass a file"
    ):
        build_prior_encoder(kind, "openai")
    with pytest.raises(EncoderUnavailable, match=r"'opanai' is neither a file nor .*\(openai, "):
        build_prior_encoder(kind, "opanai")
    with pytest.raises(ValueError, match=r"QuickGELU; name it clip:ViT-B-32-quickgelu"):
        build_prior_encoder("clip:ViT-B-32", "openai")
    with pytest.raises(EncoderUnavailable, match=r"nor one of timm's tags for it \(in1k\)"):
        build_prior_encoder("imagenet", "in21k")

    tags = {tiny_clip.NAME: {"own": {"file": write("safetensors", state, tmp_path)}}}
    tags[tiny_clip.NAME]["own"]["quick_gelu"] = True  # type: ignore[assignment]
    monkeypatch.setattr("open_clip.pretrained._PRETRAINED", tags)
    assert torch.equal(prior("own"), prior(state))


def test_whatever_breaks_while_a_tag_is_fetched_is_explained(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(*_: object, **__: object) -> str:
        raise RuntimeError("the proxy wants a password")

    monkeypatch.setattr("open_clip.download_pretrained", refuses)
    with pytest.raises(EncoderUnavailable, match=r"the proxy wants a password\); pass a file"):
        build_prior_encoder("clip:ViT-B-32-quickgelu", "openai")


@pytest.mark.parametrize("source", ["nowhere/weights.safetensors", "lost.pth", Path("lost")])
def test_missing_files_are_named(source: str | Path) -> None:
    with pytest.raises(EncoderUnavailable, match=r"no weights file (nowhere|lost).*; pass a file"):
        prior(source)


def test_missing_folders_and_packages_are_named(tmp_path: Path) -> None:
    with pytest.raises(EncoderUnavailable, match=r"there is no folder .*nowhere"):
        prior(f"local-dir:{tmp_path}/nowhere")
    with pytest.raises(EncoderUnavailable, match=r"expected one weights file .* found none"):
        prior(f"local-dir:{tmp_path}")
    for name in ("no_such_package", "../secrets", "os.path"):
        with pytest.raises(EncoderUnavailable, match="there is no installed package"):
            prior(f"package:{name}")


def test_a_folder_s_only_weights_file_is_taken_and_two_are_not(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    save_file(state, tmp_path / "mine.safetensors")
    assert torch.equal(prior(f"local-dir:{tmp_path}"), prior(state))
    save_file(state, tmp_path / "yours.safetensors")
    with pytest.raises(EncoderUnavailable, match=r"found mine.safetensors, yours.safetensors"):
        prior(f"local-dir:{tmp_path}")


# ---- weights that belong to another model --------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quick_gelu": False}, "trained with GELU; name it clip:tiny-vit$"),
        ({"embed_dim": 24}, "describes another image encoder"),
        ({"vision_cfg": tiny_clip.VIT["vision_cfg"] | {"head_width": 16}}, "another image encoder"),
        ({"vision_cfg": {"no_such_field": 1}}, "is not an open_clip configuration"),
        ({"vision_cfg": None}, "is not an open_clip configuration"),
    ],
)
def test_a_folder_s_configuration_must_be_the_model_s(
    change: dict[str, Any], words: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    source = put(tmp_path, state)
    config = {"model_cfg": tiny_clip.MODELS[tiny_clip.NAME] | change}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=words):
        prior(source)


def test_a_folder_with_other_statistics_is_refused(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    source = put(tmp_path, state)
    config = json.loads((tmp_path / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"normalised by mean \[0.5, 0.5, 0.5\]"):
        prior(source)


def test_openai_s_weights_in_a_plain_gelu_model_are_refused(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="QuickGELU; name it clip:tiny-vit-quickgelu"):
        prior(write("openai", state, tmp_path), "clip:tiny-vit")


def test_weights_that_do_not_fit_are_listed_and_not_loaded() -> None:
    module = nn.Sequential(*(nn.Linear(2, 2) for _ in range(12)))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = {f"{i}.wrong": torch.zeros(2) for i in range(12)} | {"0.weight": torch.zeros(3, 3)}
    with pytest.raises(ValueError, match="none was loaded") as caught:
        load_strictly(module, state, "encoder")
    text = str(caught.value)
    assert "23 missing: 0.bias, 1.weight," in text
    assert "and 13 more; 12 unexpected: 0.wrong," in text
    assert "and 2 more; 1 of another shape: 0.weight (3, 3) instead of (2, 2)" in text
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_another_efficientnet_is_refused(tmp_path: Path) -> None:
    state = {"_conv_stem.weight": torch.zeros(32, 3, 3, 3), "_fc.weight": torch.zeros(10, 4)}
    with pytest.raises(ValueError, match="the model wants 294 tensors, the file has 1"):
        build_prior_encoder("imagenet", state)


# ---- files from strangers ------------------------------------------------------------------------


class Bomb:
    """Unpickled without care, it makes a folder."""

    def __init__(self, target: Path) -> None:
        self.target = str(target)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_that_would_run_code_does_not(legacy: bool, tmp_path: Path) -> None:
    target, path = tmp_path / "ran", tmp_path / "weights.pth"
    torch.save({STATE_KEY: Bomb(target)}, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(ValueError, match="holds more than tensors, and is not loaded"):
        read_state_dict(path)
    path.write_bytes(pickle.dumps({STATE_KEY: Bomb(target)}, protocol=2))
    with pytest.raises(ValueError, match="holds more than tensors, and is not loaded"):
        read_state_dict(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # the bomb was live


def test_torchscript_archives_are_refused_with_the_way_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():  # TorchScript is deprecated, but OpenAI's files are TorchScript
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"is a TorchScript archive .*pass weights='openai'"):
        read_state_dict(tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is a TorchScript archive"):
        prior(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_damaged_files_are_refused(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith("pt"):
        torch.save(state, path)
    else:
        save_file(state, path)
    whole = path.read_bytes()
    for damaged in (b"", b"not weights at all", whole[:1000], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is not a whole safetensors file|is damaged"):
            read_state_dict(path)


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_altered_files_are_read_or_refused(form: str, tmp_path: Path) -> None:
    path = tmp_path / ("weights.safetensors" if form == "safetensors" else "weights.pt")
    state = {"weight": torch.rand(3, 4), "bias": torch.rand(4)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    refused = 0
    for _ in range(200):
        altered = bytearray(whole)
        for place in np.random.randint(0, len(whole), 3):
            altered[place] = np.random.randint(0, 256)
        path.write_bytes(altered)
        try:
            read_state_dict(path)
        except ValueError:
            refused += 1
    assert refused > 0


def test_a_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "weights.pt", "w") as archive:
        archive.writestr("letter.txt", "hello")
    with pytest.raises(ValueError, match="is damaged"):
        read_state_dict(tmp_path / "weights.pt")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (torch.zeros(3), "got Tensor"),
        ([torch.zeros(3)], "got list"),
        ({}, "got dict"),
        ({"step": 3}, "got int under 'step'"),
        ({3: torch.zeros(3)}, "got Tensor under 3"),
    ],
)
def test_files_without_tensors_by_name_are_refused(
    content: object, words: str, tmp_path: Path
) -> None:
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=rf"must hold tensors by name \(a state dict\), {words}"):
        read_state_dict(tmp_path / "weights.pt")


def test_one_file_serves_both_towers(state: dict[str, Tensor], tmp_path: Path) -> None:
    path = write("safetensors", state, tmp_path)
    assert torch.equal(
        build_text_encoder(tiny_clip.KIND, path)(["rain"]),
        build_text_encoder(tiny_clip.KIND, state)(["rain"]),
    )
