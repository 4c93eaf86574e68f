"""What an accelerated block is: its own class, with a faster forward put before it.

A block keeps its identity, parameters, hooks and attributes; only its class changes, to a subclass
of the original one. So the original forward is always at hand, and the block takes it whenever the
fused one would not be the same computation: dropout at work, attention probabilities asked for, a
hook on a layer the fused pass does not call, arguments it does not know.
"""

from __future__ import annotations

from inspect import signature
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.models._structure import AttentionRoles, MlpRoles
from clipweather_fast.modules._observation import observed
from clipweather_fast.modules._reduction import reduced
from clipweather_fast.modules._tokens import as_image, as_tokens, by_heads, check, keys_and_values

__all__ = ["Accelerated", "accelerated_class"]

#: Arguments that change what a network collects, not what a block computes.
IGNORED = ("output_hidden_states", "return_dict", "use_cache")


class Accelerated(nn.Module):
    """Put before the original class in the method resolution order."""

    original: ClassVar[type[nn.Module]]
    roles: ClassVar[Any]
    #: What the original's forward calls its tokens and their size.
    names: ClassVar[tuple[str, ...]]

    def _positional(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The call with tokens and size in their places, if they came by their names."""
        missing = self.names[len(args) :]
        if not missing or any(name not in kwargs for name in missing):
            return args, kwargs
        rest = {name: value for name, value in kwargs.items() if name not in missing}
        return (*args, *(kwargs[name] for name in missing)), rest

    def _fusible(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """Whether the fused forward is the original computation for this very call."""
        roles = self.roles
        expected = 3 if roles.pair else 2
        if len(args) < expected:
            return False
        extras = [*args[expected:], *(v for name, v in kwargs.items() if name not in IGNORED)]
        if any(extra is not None and extra is not False for extra in extras):
            return False
        return not any(observed(_child(self, name)) for name in roles.bypassed)

    def __reduce_ex__(self, protocol: Any) -> Any:
        rebuild = (type(self).original, type(self).__mro__[1], self.roles)
        state: Any = self.__getstate__  # the block's own, if it has one
        return _rebuild, rebuild, state()


class AcceleratedMlp(Accelerated):
    """Linear, [ReLU], depthwise 3×3 with bias and GELU in one pass over the tokens, Linear."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's arguments and result."""
        args, kwargs = self._positional(args, kwargs)
        roles = self.roles
        dropout = _child(self, roles.dropout) if roles.dropout else None
        if not self._fusible(args, kwargs) or _dropping(dropout):
            return super().forward(*args, **kwargs)
        x, height, width = _tokens_and_size(args, roles.pair)
        check(type(self).original.__name__, x, height, width)
        x = _child(self, roles.first)(x)
        if roles.before:
            x = _child(self, roles.before)(x)
        convolution = cast(nn.Conv2d, _child(self, roles.convolution))
        z = as_image(x, height, width)
        z = ops.depthwise_conv2d(z, convolution.weight, convolution.bias, activation="gelu")
        return _child(self, roles.second)(as_tokens(z))


class AcceleratedAttention(Accelerated):
    """Attention that reads heads where the Linear layers leave them and forms no score matrix."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The original's arguments and result."""
        args, kwargs = self._positional(args, kwargs)
        if not self._fusible(args, kwargs) or self._dropping() or self._probabilities_wanted():
            return super().forward(*args, **kwargs)
        roles = self.roles
        x, height, width = _tokens_and_size(args, roles.pair)
        if roles.sr:  # without, H and W are not read: there may be a class token besides
            check(type(self).original.__name__, x, height, width)
        heads = getattr(self, roles.heads)
        q = by_heads(_child(self, roles.query)(x), heads)
        k, v = self._keys_values(self._reduced(x, height, width), heads)
        scale = getattr(self, roles.scale, None) if roles.scale else None
        out = ops.reduced_kv_attention(q, k, v, scale=scale).flatten(2)
        if roles.projection:
            out = _child(self, roles.projection)(out)
        if roles.projection_dropout:
            out = _child(self, roles.projection_dropout)(out)
        if roles.returns == "tensor":
            return out
        return (out,) if roles.returns == "tuple" else (out, None)

    def _dropping(self) -> bool:
        """Whether attention weights are dropped: a module, or a rate kept as a number."""
        name = self.roles.attention_dropout
        if name:
            return _dropping(_child(self, name))
        return self.training and getattr(self, "attention_dropout", 0.0) > 0.0

    def _probabilities_wanted(self) -> bool:
        """Whether the network is configured for an attention that returns its probabilities."""
        if self.roles.returns != "pair":
            return False
        config = getattr(self, "config", None)
        return getattr(config, "_attn_implementation", "sdpa") != "sdpa"

    def _reduced(self, x: Tensor, height: int, width: int) -> Tensor:
        roles = self.roles
        if not roles.sr:
            return x
        sr = _child(self, roles.sr)
        if roles.pool:
            image = _child(self, roles.pool)(as_image(x, height, width))
            x = as_tokens(sr(image))
        else:
            x = reduced(x, height, width, cast(nn.Conv2d, sr))
        x = _child(self, roles.norm)(x)
        return _child(self, roles.activation)(x) if roles.activation else x

    def _keys_values(self, x: Tensor, heads: int) -> tuple[Tensor, Tensor]:
        if len(self.roles.keys_values) == 1:
            k, v = keys_and_values(_child(self, self.roles.keys_values[0])(x), heads)
        else:
            k, v = (by_heads(_child(self, n)(x), heads) for n in self.roles.keys_values)
        return k, v


def accelerated_class(
    original: type[nn.Module], roles: MlpRoles | AttentionRoles
) -> type[Accelerated]:
    """The accelerated subclass of a block's class; one for all blocks alike."""
    kind = AcceleratedMlp if isinstance(roles, MlpRoles) else AcceleratedAttention
    return _class_for(original, kind, roles)


_classes: dict[tuple[Any, ...], type[Accelerated]] = {}


def _class_for(
    original: type[nn.Module], kind: type[Accelerated], roles: MlpRoles | AttentionRoles
) -> type[Accelerated]:
    key = (original, kind, roles)
    if key in _classes:
        return _classes[key]
    members = {
        "__doc__": f"{original.__name__}, accelerated by clipweather_fast.",
        "__module__": __name__,
        "original": original,
        "roles": roles,
        "names": tuple(signature(original.forward).parameters)[1 : 4 if roles.pair else 3],
    }
    made = type(f"Accelerated{original.__name__}", (kind, original), members)
    return _classes.setdefault(key, cast(type[Accelerated], made))


def _rebuild(
    original: type[nn.Module], kind: type[Accelerated], roles: MlpRoles | AttentionRoles
) -> Accelerated:
    """An empty instance, for pickle and copy to fill (the classes are made at run time)."""
    made = _class_for(original, kind, roles)
    return made.__new__(made)


def _child(module: nn.Module, name: str) -> nn.Module:
    """As get_submodule, without its checks: it is called some ten times per block."""
    for part in name.split("."):
        module = getattr(module, part)
    return module


def _tokens_and_size(args: tuple[Any, ...], pair: bool) -> tuple[Tensor, int, int]:
    height, width = (args[1], args[2]) if pair else args[1]
    return args[0], height, width


def _dropping(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Dropout) and module.training and module.p > 0.0
