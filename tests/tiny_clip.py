"""CLIP models of a few thousand parameters, and their networks written out.

The written-out networks share no line with open_clip: plain matrix products and convolutions on a
state dict.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

VIT = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 64, "head_width": 32, "layers": 2},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
RESNET = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 64, "layers": [2, 1, 1, 1], "width": 16, "patch_size": None},
    "text_cfg": VIT["text_cfg"],
}
MODELS = {
    "tiny-vit": VIT,
    "tiny-vit-quickgelu": VIT | {"quick_gelu": True},
    "tiny-resnet-quickgelu": RESNET | {"quick_gelu": True},
}
NAME = "tiny-vit-quickgelu"
KIND = f"clip:{NAME}"


def register(folder: Path) -> None:
    """Makes open_clip know the models above."""
    import open_clip

    for name, config in MODELS.items():
        (folder / f"{name}.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)


def clip_weights(name: str = NAME, seed: int = 0) -> dict[str, Tensor]:
    """A whole CLIP's state dict, every value drawn at random (norms and biases too)."""
    import open_clip

    config = open_clip.get_model_config(name)
    model = open_clip.CLIP(**config)
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, value in model.state_dict().items():
        if not value.is_floating_point():
            state[key] = value
            continue
        drawn = 0.05 * torch.randn(value.shape, generator=generator)
        around_one = "running_var" in key or (value.dim() == 1 and key.endswith("weight"))
        state[key] = drawn + (1.0 if around_one else 0.0)
    return state


def part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries under a prefix, without it."""
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def layer_norm(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def blocks(x: Tensor, state: dict[str, Tensor], heads: int, mask: Tensor | None = None) -> Tensor:
    """Pre-norm transformer blocks on (N, L, width)."""
    count = 1 + max(int(key.split(".")[2]) for key in state if key.startswith("transformer."))
    n, length, width = x.shape
    for i in range(count):
        s = part(state, f"transformer.resblocks.{i}.")
        qkv = F.linear(layer_norm(x, s, "ln_1"), s["attn.in_proj_weight"], s["attn.in_proj_bias"])
        q, k, v = qkv.view(n, length, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) * (width // heads) ** -0.5
        if mask is not None:
            scores = scores + mask
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(n, length, width)
        x = x + F.linear(mixed, s["attn.out_proj.weight"], s["attn.out_proj.bias"])
        hidden = F.linear(layer_norm(x, s, "ln_2"), s["mlp.c_fc.weight"], s["mlp.c_fc.bias"])
        x = x + F.linear(quick_gelu(hidden), s["mlp.c_proj.weight"], s["mlp.c_proj.bias"])
    return x


def vision_transformer(pixels: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    """CLIP's image embedding (N, embed_dim) of normalised squares; keys without ``visual.``."""
    patch = state["conv1.weight"].shape[-1]
    x = F.conv2d(pixels, state["conv1.weight"], stride=patch).flatten(2).transpose(1, 2)
    first = state["class_embedding"].expand(x.shape[0], 1, -1)
    x = torch.cat([first, x], 1) + state["positional_embedding"]
    x = blocks(layer_norm(x, state, "ln_pre"), state, heads)
    return layer_norm(x[:, 0], state, "ln_post") @ state["proj"]


def text_transformer(tokens: Tensor, state: dict[str, Tensor], heads: int) -> Tensor:
    """CLIP's text embedding (N, embed_dim), taken where the end token (the largest id) stands."""
    length = tokens.shape[1]
    x = state["token_embedding.weight"][tokens] + state["positional_embedding"]
    mask = torch.full((length, length), float("-inf")).triu(1)
    x = layer_norm(blocks(x, state, heads, mask), state, "ln_final")
    return x[torch.arange(len(x)), tokens.argmax(1)] @ state["text_projection"]


def resnet_trunk(pixels: Tensor, state: dict[str, Tensor], depths: list[int]) -> list[Tensor]:
    """Stem, layer1 … layer4 of CLIP's ResNet on normalised pixels; keys without ``visual.``."""

    def conv_norm(x: Tensor, conv: str, norm: str, **where: int) -> Tensor:
        s = {k: state[f"{norm}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")}
        return F.batch_norm(F.conv2d(x, state[f"{conv}.weight"], **where), **s)

    x = F.relu(conv_norm(pixels, "conv1", "bn1", stride=2, padding=1))
    x = F.relu(conv_norm(x, "conv2", "bn2", padding=1))
    x = F.avg_pool2d(F.relu(conv_norm(x, "conv3", "bn3", padding=1)), 2)
    maps = [x]
    for stage, depth in enumerate(depths, 1):
        for i in range(depth):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            out = F.relu(conv_norm(x, f"{name}.conv1", f"{name}.bn1"))
            out = F.relu(conv_norm(out, f"{name}.conv2", f"{name}.bn2", padding=1))
            out = conv_norm(F.avg_pool2d(out, stride), f"{name}.conv3", f"{name}.bn3")
            if f"{name}.downsample.0.weight" in state:
                x = conv_norm(
                    F.avg_pool2d(x, stride), f"{name}.downsample.0", f"{name}.downsample.1"
                )
            x = F.relu(out + x)
        maps.append(x)
    return maps
