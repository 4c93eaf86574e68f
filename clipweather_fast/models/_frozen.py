"""When a network computes in its frozen form, and keeping that form in step with the network.

The form is built on the first call that can use it and kept beside the network, not in it: it is in
no state dict, copy or pickle, and goes when the network goes. Every call compares what the form was
built from with what is there now: a weight that was changed or exchanged, a layer that was replaced
builds it anew (of values written past PyTorch's count, as by ``weight.data[…] = …``, a sample is
compared); a hook, a layer of another class, a mode of PyTorch that wants to see every operator
leave the call to the modules.
"""

from __future__ import annotations

import platform
from functools import cache
from operator import attrgetter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from clipweather_fast import modules
from clipweather_fast.models import _blocks, _conv_decoder, _encoder, _prior_embedding
from clipweather_fast.models._conv_decoder import Up
from clipweather_fast.models._kept_forms import FormKey, KeptForms
from clipweather_fast.ops import _native
from clipweather_fast.ops._backends import requested_backend
from clipweather_fast.ops._direct import dispatcher_idle

if TYPE_CHECKING:
    from clipweather_fast.models._frozen_network import FrozenNetwork
    from clipweather_fast.models.network import RestorationNetwork

__all__ = ["form_dtype", "form_key", "forms_available", "frozen_form", "multiplied_in", "precision"]

_forms: KeptForms[FrozenNetwork] = KeptForms()

_GLOBAL_HOOKS = (
    "_global_forward_hooks",
    "_global_forward_pre_hooks",
    "_global_backward_hooks",
    "_global_backward_pre_hooks",
)
#: What a layer may not have: it is learning, or someone watches it.
_WATCHED = (
    "training",
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
X86 = platform.machine().lower() in ("x86_64", "amd64")
_FLOAT32 = frozenset({torch.float32})
_OPERATORS = (
    "_linear_pointwise",
    "_reorder_linear_weight",
    "_convolution_pointwise",
    "_convolution_pointwise_",
)


def frozen_form(
    network: RestorationNetwork, image: Tensor, prior: Tensor | None
) -> FrozenNetwork | None:
    """The form that computes what ``network(image, prior)`` does, or None.

    Args:
        network: of a class of this package.
        image: in [0, 1], as it was given.
        prior: of the picture; None: there is none.
    """
    if torch.is_grad_enabled():
        return None
    dtype = form_dtype(image, prior)
    if dtype is None:
        return None
    multiplied = multiplied_in(dtype)
    key = form_key(network, _known_classes())
    if key is None:
        return None
    return _forms.get(
        network,
        multiplied,
        key,
        lambda: (w for n, w in network.named_parameters() if not n.startswith("prior_encoder.")),
        lambda: _built(network, multiplied),
    )


def _built(network: RestorationNetwork, dtype: torch.dtype) -> FrozenNetwork:
    from clipweather_fast.models._frozen_network import FrozenNetwork

    return FrozenNetwork(network, dtype)


def form_dtype(image: Tensor, prior: Tensor | None = None) -> torch.dtype | None:
    """What a form that takes these tensors is asked to compute in; None: there can be none."""
    dtype = precision()
    if dtype is None or image.device.type != "cpu":
        return None
    if not dispatcher_idle((image, prior)) or requested_backend() not in ("auto", "cpu"):
        return None
    return dtype if _why_not(multiplied_in(dtype)) is None else None


def multiplied_in(dtype: torch.dtype) -> torch.dtype:
    """What a form multiplies in where it is asked to compute in ``dtype``.

    Autocast to bfloat16 is asked for to be faster. Where bfloat16 is slower, that is float32; on
    other processors than x86 nobody has measured, and autocast is taken at its word.
    """
    slower = dtype == torch.bfloat16 and X86 and not _native.bfloat16_pays()
    return torch.float32 if slower else dtype


def precision() -> torch.dtype | None:
    """What the layers would multiply in now; None: something that no form is made for."""
    if not torch.is_autocast_enabled("cpu"):
        return torch.float32
    dtype = torch.get_autocast_dtype("cpu")
    return dtype if dtype == torch.bfloat16 else None


def forms_available() -> bool:
    """Whether this installation has forms in float32."""
    return _why_not(torch.float32) is None


@cache
def _why_not(dtype: torch.dtype) -> str | None:
    """Why this installation has no form of a precision."""
    reason = _native.why_not_loaded()
    if reason is not None:
        return reason
    if not torch.backends.mkldnn.is_available():
        return "PyTorch was built without oneDNN"
    missing = [name for name in _OPERATORS if not hasattr(torch.ops.mkldnn, name)]
    if missing:
        return f"this version of PyTorch has no mkldnn::{missing[0]}"
    if dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return "oneDNN has no bfloat16 on this processor"
    return None


@cache
def _known_classes() -> frozenset[type[nn.Module]]:
    """The classes of the networks' parts. An instance of a subclass may compute anything."""
    from clipweather_fast.models.clip_weather import ClipWeather
    from clipweather_fast.models.transweather import QueryAttention, QueryDecoder, TransWeather

    return frozenset(
        {
            *(ClipWeather, TransWeather, QueryAttention, QueryDecoder),
            *(modules.ConvMlp, modules.EfficientAttention, modules.SARConv2d, modules.SARFFN),
            *(_blocks.Block, _blocks.DropPath, _blocks.PatchEmbed, _encoder.Encoder),
            *(_conv_decoder.Conv, _conv_decoder.ConvDecoder, _conv_decoder.Detail, Up),
            _conv_decoder.Residual,
            *(_prior_embedding.PriorAttention, _prior_embedding.PriorEmbedding),
            _prior_embedding.PriorHead,
            *(nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.LayerNorm, nn.Dropout, nn.Identity),
            *(nn.GELU, nn.ReLU, nn.Tanh, nn.ModuleList, nn.Sequential),
        }
    )


def form_key(network: nn.Module, known: frozenset[type[nn.Module]]) -> FormKey | None:
    """What a form depends on: the layers and the state of their weights; None: there can be none.

    A network's prior encoder is no part of its form. It has computed before, by its own call.
    Asked only where :func:`form_dtype` found that there can be forms.

    Args:
        network: what the form stands for.
        known: the classes whose computation the form repeats.
    """
    if any(getattr(torch_module, name, None) for name in _GLOBAL_HOOKS):
        return None
    if not torch.backends.mkldnn.enabled:
        return None
    found = _native.core().layers_of(network, known, _WATCHED, "prior_encoder")
    if found is None:
        return None
    layers, parameters = found
    weights = [w for w in parameters if w is not None]
    if not _FLOAT32.issuperset(map(attrgetter("dtype"), weights)):
        return None
    if any(map(Tensor.is_inference, weights)):
        return None  # those that inference mode made have no version
    return (
        tuple(map(id, layers)),
        tuple(map(id, parameters)),
        tuple(map(Tensor.data_ptr, weights)),
        tuple(map(attrgetter("_version"), weights)),
    )
