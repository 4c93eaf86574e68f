"""CLIP's two towers, built by open_clip alone (never its loader) and filled from a safe source."""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast.clip._packages import EncoderUnavailable, import_open_clip
from clipweather_fast.clip.preprocessing import CLIP_MEAN, CLIP_STD
from clipweather_fast.clip.weights import (
    SOURCES,
    Weights,
    download,
    find,
    load_strictly,
    read_state_dict,
    seeded,
)

__all__ = ["Architecture", "architecture", "image_tower", "text_tower"]

CONFIG = "open_clip_config.json"
#: Keys that OpenAI's own state dicts hold beside the two towers.
OPENAI_KEYS = {"input_resolution", "context_length", "vocab_size"}
#: The other tower while one is built: as small as open_clip allows, and thrown away.
SMALL_TEXT = {"context_length": 1, "vocab_size": 1, "width": 8, "heads": 1, "layers": 1}
SMALL_VISION = {"image_size": 8, "patch_size": 8, "width": 8, "head_width": 8, "layers": 1}


@dataclass(frozen=True)
class Architecture:
    """One of open_clip's models: its name there and its configuration."""

    name: str
    embed_dim: int
    image_size: int
    quick_gelu: bool
    vision: Mapping[str, Any]
    text: Mapping[str, Any]


def architecture(who: str, name: str) -> Architecture:
    """open_clip's configuration of this name.

    Raises:
        EncoderUnavailable: if open_clip cannot be imported.
        ValueError: if it has no such model, or one made of other libraries' towers.
    """
    open_clip = import_open_clip(who)
    config = open_clip.get_model_config(name) if ":" not in name else None
    if config is None:
        near = ", ".join(difflib.get_close_matches(name, open_clip.list_models(), 3, 0.4))
        raise ValueError(f"{who}: open_clip has no model {name!r}; nearest: {near or 'none'}")
    foreign = {"timm_model_name", "hf_model_name"} & {*config["vision_cfg"], *config["text_cfg"]}
    if foreign or config.get("custom_text") or "multimodal_cfg" in config:
        raise ValueError(
            f"{who}: {name!r} is not a CLIP model of open_clip's own towers; "
            "choose one like ViT-B-32-quickgelu"
        )
    return Architecture(
        name,
        config["embed_dim"],
        config["vision_cfg"]["image_size"],
        bool(config.get("quick_gelu", False)),
        config["vision_cfg"],
        config["text_cfg"],
    )


def image_tower(who: str, model: Architecture, weights: Weights | None) -> nn.Module:
    """CLIP's image encoder in eval mode, float32."""
    state = _state(who, model, weights)
    # Values that are about to be overwritten need not be drawn: a second saved.
    with seeded() if state is None else torch.device("meta"):
        tower = _build(who, model, text=SMALL_TEXT).visual
    if state is not None:
        visual = {
            name.removeprefix("visual."): value
            for name, value in state.items()
            if name.startswith("visual.")
        }
        load_strictly(tower, visual or state, who)
    return cast(nn.Module, tower.eval())


def text_tower(who: str, model: Architecture, weights: Weights | None) -> nn.Module:
    """CLIP's text encoder (``encode_text``) in eval mode, float32."""
    state = _state(who, model, weights)
    # Not on the meta device: the causal mask is no parameter and would stay there.
    with seeded():
        clip = _build(who, model, vision=SMALL_VISION)
    clip.visual = nn.Identity()
    if state is not None:
        text = {name: value for name, value in state.items() if not name.startswith("visual.")}
        load_strictly(clip, text, who)
    return cast(nn.Module, clip.eval())


def _build(who: str, model: Architecture, **other: Mapping[str, Any]) -> Any:
    return import_open_clip(who).CLIP(
        model.embed_dim,
        dict(other.get("vision", model.vision)),
        dict(other.get("text", model.text)),
        quick_gelu=model.quick_gelu,
    )


def _state(who: str, model: Architecture, weights: Weights | None) -> dict[str, Tensor] | None:
    """The weights by name, or None for random ones."""
    if weights is None:
        raise EncoderUnavailable(
            f"{who} needs weights: pass 'openai' (or another of open_clip's tags, "
            f"downloaded once), {SOURCES}"
        )
    if isinstance(weights, Mapping):
        state = dict(weights)
    elif weights == "random":
        return None
    else:
        state = read_state_dict(_file(who, model, weights))
    if state.keys() >= OPENAI_KEYS and not model.quick_gelu:
        raise ValueError(_not_quick(who, model, "these weights are OpenAI's and"))
    return {name: value for name, value in state.items() if name not in OPENAI_KEYS}


def _file(who: str, model: Architecture, source: str | os.PathLike[str]) -> Path:
    scheme, _, rest = str(source).partition(":")
    if scheme == "local-dir" and (Path(rest).expanduser() / CONFIG).is_file():
        _check_config(who, model, Path(rest).expanduser() / CONFIG)
    elif scheme == "hf-hub":
        _check_config(who, model, download(who, rest, [CONFIG]))
    path = find(who, source)
    return _tagged(who, model, str(source)) if path is None else path


def _tagged(who: str, model: Architecture, tag: str) -> Path:
    """The file behind one of open_clip's tags for this model, downloaded if need be."""
    open_clip = import_open_clip(who)
    plain = open_clip.get_pretrained_cfg(model.name, tag)
    if not plain:
        tags = ", ".join(open_clip.list_pretrained_tags_by_model(model.name)) or "none"
        raise EncoderUnavailable(
            f"{who}: {tag!r} is neither a file nor one of open_clip's tags for it ({tags}); "
            f"pass {SOURCES}"
        )
    _check_activation(who, model, bool(plain.get("quick_gelu", False)), f"the tag {tag!r}")
    _check_statistics(who, plain, f"the tag {tag!r}")
    try:
        return Path(open_clip.download_pretrained(plain))
    # A connection that breaks, a proxy that refuses: the hub's client has a type for each.
    except Exception as error:
        raise EncoderUnavailable(
            f"{who}: the weights {tag!r} could not be downloaded ({shorten(str(error), 300)}); "
            f"pass {SOURCES}"
        ) from error


def _check_config(who: str, model: Architecture, path: Path) -> None:
    """``ValueError`` unless a folder's weights belong to this architecture, activation included."""
    open_clip = import_open_clip(who)
    try:
        whole = json.loads(path.read_text(encoding="utf-8"))
        config = whole.get("model_cfg", whole)
        vision = open_clip.CLIPVisionCfg(**config["vision_cfg"])
        quick_gelu, embed_dim = bool(config.get("quick_gelu", False)), config["embed_dim"]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{who}: {path} is not an open_clip configuration: {error}") from error
    _check_activation(who, model, quick_gelu, str(path))
    _check_statistics(who, whole.get("preprocess_cfg", {}), str(path))
    if vision != open_clip.CLIPVisionCfg(**model.vision) or embed_dim != model.embed_dim:
        raise ValueError(
            f"{who}: {path} describes another image encoder ({config['vision_cfg']}, "
            f"embed_dim {embed_dim}) than {model.name}; name that one"
        )


def _check_activation(who: str, model: Architecture, quick_gelu: bool, source: str) -> None:
    """The wrong GELU loads without complaint and degrades the features, so it is refused."""
    if quick_gelu and not model.quick_gelu:
        raise ValueError(_not_quick(who, model, f"{source}'s weights"))
    if model.quick_gelu and not quick_gelu:
        plain = model.name.removesuffix("-quickgelu")
        raise ValueError(f"{who}: {source}'s weights were trained with GELU; name it clip:{plain}")


def _not_quick(who: str, model: Architecture, whose: str) -> str:
    return f"{who}: {whose} were trained with QuickGELU; name it clip:{model.name}-quickgelu"


def _check_statistics(who: str, config: Mapping[str, Any], source: str) -> None:
    mean, std = config.get("mean") or CLIP_MEAN, config.get("std") or CLIP_STD
    if (tuple(mean), tuple(std)) != (CLIP_MEAN, CLIP_STD):
        raise ValueError(
            f"{who}: {source} wants pictures normalised by mean {mean} and deviation {std}, "
            f"not CLIP's {CLIP_MEAN} and {CLIP_STD}; choose weights trained with those"
        )
