"""Weather prior encoders: a whole picture to one vector, behind one interface."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import cast

import torch
from torch import Tensor, nn

from clipweather_fast.clip import _towers
from clipweather_fast.clip._imagenet import DEFAULT, imagenet_network
from clipweather_fast.clip.preprocessing import CLIP_MEAN, CLIP_STD, check_image, encoder_input
from clipweather_fast.clip.weights import Weights, seeded

__all__ = ["PriorEncoder", "build_prior_encoder"]

KINDS = (
    "clip:MODEL",
    "clip-class:MODEL",
    "imagenet",
    "imagenet:MODEL",
    "convolutional",
    "convolutional:DIM",
)


class PriorEncoder(nn.Module):
    """What every prior encoder is: pictures (N, 3, H, W) in [0, 1] to vectors (N, dim).

    The whole picture is resized to a square (bicubic, antialiased, no crop) and normalised here.
    A frozen encoder has no trainable parameter, stays in eval mode whatever ``train`` says, and
    passes no gradient.

    Attributes:
        kind: the words it was built from.
        dim: length of a vector.
        size: side of the square that the network sees.
        frozen: whether it is frozen.
    """

    def __init__(
        self,
        kind: str,
        dim: int,
        size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        *,
        frozen: bool,
    ) -> None:
        super().__init__()
        self.kind, self.dim, self.size, self.frozen = kind, dim, size, frozen
        self.mean, self.std = mean, std

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PriorEncoder:
        """As ``nn.Module.train``; a frozen encoder stays in eval mode."""
        return super().train(mode and not self.frozen)

    def forward(self, image: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1], any H, W ≥ 1, to vectors (N, dim).

        Raises:
            TypeError, ValueError: if ``image`` is not such a tensor.
        """
        check_image(self.kind, image)
        if not self.frozen:
            return self._encode(self.prepared(image))
        with torch.no_grad():
            pixels = self.prepared(image)
            if pixels.shape[0] == 0:  # open_clip's reshapes cannot take no picture
                return pixels.new_zeros(0, self.dim)
            return self._encode(pixels)

    def prepared(self, image: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [0, 1] as normalised squares (N, 3, size, size)."""
        return encoder_input(image, self.size, self.mean, self.std).to(self._dtype())

    def _dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    @abstractmethod
    def _encode(self, pixels: Tensor) -> Tensor:
        """Normalised squares (N, 3, size, size) to vectors (N, dim)."""


class ClipPriorEncoder(PriorEncoder):
    """The image embedding of a frozen CLIP model.

    After its projection, or, for ``projected=False``, the class token before that.
    """

    def __init__(
        self, kind: str, model: _towers.Architecture, tower: nn.Module, *, projected: bool
    ) -> None:
        dim: int = model.embed_dim if projected else model.vision["width"]
        super().__init__(kind, dim, model.image_size, CLIP_MEAN, CLIP_STD, frozen=True)
        if not projected:
            tower.register_parameter("proj", None)
        self.visual = tower
        self._freeze()

    def _encode(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.visual(pixels))


class ImageNetPriorEncoder(PriorEncoder):
    """The pooled features of a frozen ImageNet classifier of timm."""

    def __init__(self, kind: str, network: nn.Module) -> None:
        config = cast("dict[str, tuple[float, ...]]", network.pretrained_cfg)
        # Where timm's networks have a layer between the pooling and the classifier, it is kept.
        dim = cast(int, getattr(network, "head_hidden_size", network.num_features))
        size = int(config["input_size"][-1])
        super().__init__(kind, dim, size, config["mean"], config["std"], frozen=True)
        self.network = network
        self._freeze()

    def _encode(self, pixels: Tensor) -> Tensor:
        return cast(Tensor, self.network(pixels))


class ConvolutionalPriorEncoder(PriorEncoder):
    """A small encoder that learns with the network: five 3×3 convolutions of stride 2, averaged.

    Widths dim/16, dim/8, dim/4, dim/2, dim, each with a group norm and GELU; at dim = 512 1.57 M
    parameters and 0.24 GMACs per picture.
    """

    def __init__(self, kind: str, dim: int = 512) -> None:
        if not 32 <= dim <= 8192 or dim % 32:
            raise ValueError(
                f"{kind}: the dimension must be a positive multiple of 32, at most 8192, got {dim}"
            )
        super().__init__(kind, dim, 224, CLIP_MEAN, CLIP_STD, frozen=False)
        widths = [3, *(dim // 16 * 2**i for i in range(5))]
        layers: list[nn.Module] = []
        for before, width in pairwise(widths):
            layers += [
                nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False),
                nn.GroupNorm(max(1, width // 16), width),
                nn.GELU(),
            ]
        self.layers = nn.Sequential(*layers)

    def _dtype(self) -> torch.dtype:
        # Part of a network, it may be replicated by nn.DataParallel: then parameters() is empty.
        return cast(nn.Conv2d, self.layers[0]).weight.dtype

    def _encode(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.layers(pixels)
        return features.mean((2, 3))


def build_prior_encoder(kind: str, weights: Weights | None = None) -> PriorEncoder:
    """A weather prior encoder by name.

    Args:
        kind: ``"clip:MODEL"`` with an open_clip model name (the paper's is
            ``"clip:ViT-B-32-quickgelu"``; OpenAI's weights need the ``-quickgelu`` names);
            ``"clip-class:MODEL"``, a vision transformer's class token before CLIP's projection
            (768 numbers of ViT-B/32); ``"imagenet"`` (EfficientNet-Lite0) or ``"imagenet:MODEL"``
            with a timm model name. These are frozen. ``"convolutional"`` or
            ``"convolutional:DIM"`` learns.
        weights: a tag of open_clip (``"openai"``) or timm (``"in1k"``), a file,
            ``"local-dir:FOLDER"``, ``"hf-hub:OWNER/NAME"``, ``"package:NAME"``, tensors by name, or
            ``"random"``, the same every time, for tests. A convolutional encoder takes None and
            starts at random from the caller's seed.

    Raises:
        EncoderUnavailable: if a package or the weights are missing; the message says what to
            install or pass.
        ValueError: for an unknown kind or model, and for weights that do not belong to it.

    Reference:
        Sec. on the CLIP weather prior and its table of encoders, arXiv 2306.09008.
    """
    family, _, model = kind.partition(":")
    if family in ("clip", "clip-class") and model:
        return _clip(kind, model, weights, projected=family == "clip")
    if family == "imagenet":
        return ImageNetPriorEncoder(kind, imagenet_network(kind, model or DEFAULT, weights))
    if family == "convolutional" and (not model or model.isdecimal()):
        return _convolutional(kind, int(model or 512), weights)
    raise ValueError(f"prior encoder: kind must be one of {', '.join(KINDS)}, got {kind!r}")


def _clip(kind: str, name: str, weights: Weights | None, *, projected: bool) -> PriorEncoder:
    model = _towers.architecture(kind, name)
    if not projected and isinstance(model.vision["layers"], list):
        raise ValueError(f"{kind}: a ResNet has no class token; name one of CLIP's ViT models")
    tower = _towers.image_tower(kind, model, weights)
    return ClipPriorEncoder(kind, model, tower, projected=projected)


def _convolutional(kind: str, dim: int, weights: Weights | None) -> PriorEncoder:
    if weights not in (None, "random"):
        raise ValueError(
            f"{kind}: the encoder learns with its network and takes no weights, got {weights!r}"
        )
    if weights is None:
        return ConvolutionalPriorEncoder(kind, dim)
    with seeded():
        return ConvolutionalPriorEncoder(kind, dim)
