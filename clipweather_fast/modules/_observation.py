"""Whether anyone listens to a layer that a fused pass would not call."""

from __future__ import annotations

from torch import nn

__all__ = ["observed", "untouched"]


def observed(*modules: nn.Module) -> bool:
    """Whether any of these has hooks, which only its own call runs.

    They may do more than look: pruning and the older weight normalisations compute the layer's
    weight in one.
    """
    return any(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        for module in modules
    )


def untouched(*modules: nn.Module) -> bool:
    """Whether nobody listens to any of these, or put another ``forward`` into one."""
    return not observed(*modules) and all("forward" not in vars(module) for module in modules)
