"""Recognises, by structure alone, the blocks that :func:`accelerate` can compute.

A block is known by its children's names and types and by its forward's signature, never by where
its class comes from. :func:`recognise` answers with the roles its children play, or with the
sentence that says why a block that looks alike is not one, or with None for everything else.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import nn

__all__ = ["AttentionRoles", "MlpRoles", "recognise"]

MAX_HEAD_DIM = 256
#: Children that give away a block of which nothing else can be read.
ALIKE = ({"fc1", "dwconv", "fc2"}, {"dense1", "dwconv", "dense2"}, {"q", "kv", "proj"})


@dataclass(frozen=True)
class MlpRoles:
    """A feed-forward block: the dotted names of its children. '' stands for an absent one."""

    first: str
    before: str
    convolution: str
    activation: str
    second: str
    dropout: str
    pair: bool

    @property
    def bypassed(self) -> tuple[str, ...]:
        """Children whose own forward the fused pass does not call."""
        parent = self.convolution.rpartition(".")[0]
        names = (self.convolution, parent, self.activation, self.dropout)
        return tuple(name for name in names if name)


@dataclass(frozen=True)
class AttentionRoles:
    """An attention block: the dotted names of its children. '' stands for an absent one.

    ``keys_values`` is one name (keys and values from one layer) or two. What they come from is the
    tokens after ``pool``, ``sr``, ``norm`` and ``activation``, as far as these are there.
    ``returns`` is "tensor", "tuple" (out,) or "pair" (out, None).
    """

    query: str
    keys_values: tuple[str, ...]
    pool: str
    sr: str
    norm: str
    activation: str
    attention_dropout: str
    projection: str
    projection_dropout: str
    heads: str
    scale: str
    pair: bool
    returns: str

    @property
    def bypassed(self) -> tuple[str, ...]:
        """Children whose own forward the fused pass does not call."""
        parent = self.sr.rpartition(".")[0]
        return tuple(name for name in (self.attention_dropout, parent) if name)


def recognise(module: nn.Module) -> MlpRoles | AttentionRoles | str | None:
    """The roles of a block's children, or why it is left, or None if it is no such block."""
    children = set(dict(module.named_children()))
    if isinstance(module, torch.jit.ScriptModule):
        alike = any(names <= children for names in ALIKE)
        return "it is a TorchScript module, whose code is fixed" if alike else None
    found: MlpRoles | AttentionRoles | str | None = None
    for look in (_mlp, _joint_attention, _projected_attention, _split_attention):
        found = look(module, children)
        if found is not None:
            break
    if found is None or isinstance(found, str):
        return found
    return _why_not_replaceable(module) or found


def _why_not_replaceable(module: nn.Module) -> str | None:
    """Reasons that hold for every kind of block."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    own = [
        *dict(module.named_parameters(recurse=False)),
        *dict(module.named_buffers(recurse=False)),
    ]
    if own:
        return f"it has a tensor of its own, {own[0]!r}, whose use is unknown"
    for name, parameter in module.named_parameters():
        if type(parameter) not in (nn.Parameter, torch.Tensor):
            return f"its parameter {name!r} is a {type(parameter).__name__}, not a plain one"
        if parameter.is_meta:
            return "its parameters are on the meta device; materialise them first"
    return None


def _first(children: set[str], *names: str) -> str:
    """The first of ``names`` among the children, or ''."""
    return next((name for name in names if name in children), "")


def _unexpected(children: set[str], used: set[str]) -> str | None:
    extra = sorted(children - used)
    return f"it has a child {extra[0]!r}, whose use is unknown" if extra else None


def _size_style(module: nn.Module, extras: bool = False) -> bool | str:
    """True for forward(x, H, W), False for forward(x, size), else why it is neither.

    ``extras`` allows further arguments that have defaults.
    """
    try:
        signature = inspect.signature(type(module).forward)
    except (TypeError, ValueError):
        return "the signature of its forward cannot be read"
    parameters = list(signature.parameters.values())[1:]
    positional = [p for p in parameters if p.kind == p.POSITIONAL_OR_KEYWORD]
    required = [p.name for p in positional if p.default is p.empty]
    if len(required) in (2, 3) and (extras or len(required) == len(parameters)):
        return len(required) == 3
    return f"its forward takes {signature}, not (x, H, W) or (x, size)"


# ---- feed-forward -----------------------------------------------------------------------------


def _mlp(module: nn.Module, children: set[str]) -> MlpRoles | str | None:
    first, second = _first(children, "fc1", "dense1"), _first(children, "fc2", "dense2")
    if not (first and second and "dwconv" in children):
        return None
    inner = module.get_submodule("dwconv")
    nested = [name for name, _ in inner.named_children()]
    convolution = "dwconv.dwconv" if nested == ["dwconv"] else "dwconv"
    activation = _first(children, "act", "activation_fn", "intermediate_act_fn")
    dropout, before = _first(children, "drop", "dropout"), _first(children, "relu")
    pair = _size_style(module)
    reason = (
        _unexpected(children, {first, second, "dwconv", activation, dropout, before})
        or _why_not_depthwise(convolution, module.get_submodule(convolution))
        or _why_not_gelu(activation, module)
        or _why_not_linear(module, first)
        or _why_not_dropout(module, dropout)
        or (pair if isinstance(pair, str) else None)
    )
    if reason is not None:
        return reason
    return MlpRoles(first, before, convolution, activation, second, dropout, bool(pair))


def _why_not_depthwise(name: str, module: nn.Module) -> str | None:
    if type(module) is not nn.Conv2d:
        return f"its {name} is a {type(module).__name__}, not an nn.Conv2d"
    if not module.groups == module.in_channels == module.out_channels:
        return f"its {name} is not depthwise (groups = {module.groups})"
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
    if geometry != ((3, 3), (1, 1), (1, 1), (1, 1)) or module.padding_mode != "zeros":
        return (
            f"its {name} must be 3 × 3 with stride 1, zero padding 1 and dilation 1, got {module}"
        )
    return None


def _why_not_gelu(name: str, module: nn.Module) -> str | None:
    if not name:
        return "it has no activation among its children"
    activation = module.get_submodule(name)
    if any(True for _ in activation.parameters()):
        return f"its activation {type(activation).__name__} has parameters"
    # Judged by what it does: libraries have GELU classes of their own. The tanh form is 1e-4 off.
    probe = torch.linspace(-10, 10, 401, dtype=torch.float64, device="cpu")
    with torch.no_grad():
        answer = activation.forward(probe.clone())
    if not torch.is_tensor(answer) or answer.shape != probe.shape:
        return f"its activation {type(activation).__name__} is not the exact GELU"
    if not torch.allclose(answer, F.gelu(probe), rtol=0.0, atol=1e-12):
        return f"its activation {activation} is not the exact GELU"
    return None


def _why_not_linear(module: nn.Module, *names: str) -> str | None:
    for name in names:
        child = module.get_submodule(name)
        if not isinstance(child, nn.Linear):
            return f"its {name} is a {type(child).__name__}, not an nn.Linear"
    return None


def _why_not_dropout(module: nn.Module, *names: str) -> str | None:
    for name in filter(None, names):
        child = module.get_submodule(name)
        if type(child) not in (nn.Dropout, nn.Identity):
            return f"its {name} is a {type(child).__name__}, not an nn.Dropout"
    return None


# ---- attention --------------------------------------------------------------------------------


def _joint_attention(module: nn.Module, children: set[str]) -> AttentionRoles | str | None:
    """q, kv, [pool], [sr, norm], [act], proj: PVTv2, TransWeather, timm."""
    if not {"q", "kv", "proj"} <= children:
        return None
    roles = AttentionRoles(
        query="q",
        keys_values=("kv",),
        pool=_first(children, "pool"),
        sr=_first(children, "sr"),
        norm=_first(children, "norm"),
        activation=_first(children, "act"),
        attention_dropout=_first(children, "attn_drop"),
        projection="proj",
        projection_dropout=_first(children, "proj_drop"),
        heads="num_heads",
        scale="scale",
        pair=_size_style(module) is True,
        returns="tensor",
    )
    return _why_not_attention(module, children, roles, _size_style(module)) or roles


def _projected_attention(module: nn.Module, children: set[str]) -> AttentionRoles | str | None:
    """q_proj, k_proj, v_proj, [sequence_reduction], o_proj: SegFormer in transformers 5."""
    if not {"q_proj", "k_proj", "v_proj", "o_proj"} <= children:
        return None
    if not hasattr(module, "sequence_reduction_ratio"):
        return None
    outer = _first(children, "sequence_reduction")
    if outer and set(dict(module.get_submodule(outer).named_children())) != {outer, "layer_norm"}:
        return f"its {outer} has other children than {outer!r} and 'layer_norm'"
    roles = AttentionRoles(
        query="q_proj",
        keys_values=("k_proj", "v_proj"),
        pool="",
        sr=outer and f"{outer}.{outer}",
        norm=outer and f"{outer}.layer_norm",
        activation="",
        attention_dropout="",
        projection="o_proj",
        projection_dropout="",
        heads="num_attention_heads",
        scale="scaling",
        pair=_size_style(module, extras=True) is True,
        returns="pair",
    )
    if getattr(getattr(module, "config", None), "_attn_implementation", "sdpa") != "sdpa":
        return (
            "its attention implementation returns the attention probabilities, which the fused one "
            "never forms; choose it with model.set_attn_implementation('sdpa')"
        )
    return _why_not_attention(module, children, roles, _size_style(module, extras=True)) or roles


def _split_attention(module: nn.Module, children: set[str]) -> AttentionRoles | str | None:
    """query, key, value, [pool], [sr, layer_norm], [act], [proj].

    SegFormer and GLPN in transformers, projected elsewhere; PVTv2 there.
    """
    if not {"query", "key", "value"} <= children:
        return None
    if not (hasattr(module, "sr_ratio") or hasattr(module, "spatial_reduction_ratio")):
        return None
    roles = AttentionRoles(
        query="query",
        keys_values=("key", "value"),
        pool=_first(children, "pool"),
        sr=_first(children, "sr", "spatial_reduction"),
        norm=_first(children, "layer_norm"),
        activation=_first(children, "act"),
        attention_dropout=_first(children, "dropout", "attn_drop"),
        projection=_first(children, "proj"),
        projection_dropout=_first(children, "proj_drop"),
        heads="num_attention_heads",
        scale="",
        pair=_size_style(module, extras=True) is True,
        returns="tuple",
    )
    return _why_not_attention(module, children, roles, _size_style(module, extras=True)) or roles


def _why_not_attention(
    module: nn.Module, children: set[str], roles: AttentionRoles, style: bool | str
) -> str | None:
    used = {
        roles.query,
        *roles.keys_values,
        roles.pool,
        roles.sr.partition(".")[0],
        roles.norm.partition(".")[0],
        roles.activation,
        roles.attention_dropout,
        roles.projection,
        roles.projection_dropout,
    }
    if roles.sr and not roles.norm:
        return "it has sr but no norm"
    return (
        _unexpected(children, used)
        or _why_not_linear(module, *filter(None, (roles.query, *roles.keys_values)))
        or _why_not_dropout(module, roles.attention_dropout, roles.projection_dropout)
        or _why_not_heads(module, roles)
        or (style if isinstance(style, str) else None)
    )


def _why_not_heads(module: nn.Module, roles: AttentionRoles) -> str | None:
    heads: Any = getattr(module, roles.heads, None)
    width = cast(nn.Linear, module.get_submodule(roles.query)).out_features
    if not isinstance(heads, int) or heads < 1 or width % heads:
        return f"its {roles.heads} = {heads!r} does not divide the {width} channels"
    if width // heads > MAX_HEAD_DIM:
        return f"its heads have {width // heads} channels; the fused attention takes {MAX_HEAD_DIM}"
    return None
