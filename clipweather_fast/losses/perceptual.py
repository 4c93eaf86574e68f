"""Perceptual loss: distance of features of a network trained on ImageNet."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.clip.weights import Weights
from clipweather_fast.losses._pictures import check_pictures, wide

__all__ = ["PerceptualLoss"]

KINDS = ("vgg16", "efficientnet_lite0", "imagenet:MODEL")


class PerceptualLoss(nn.Module):
    r"""Mean squared distance of feature maps, averaged over the maps.

    .. math:: \frac{1}{K} \sum_{k=1}^{K} \mathrm{mean}\, (\phi_k(y) - \phi_k(\mathrm{truth}))^2

    The network is frozen: it stays in eval mode and gets no gradient, and lets the gradient for
    ``y`` through. The truth's features are computed without one.

    Args:
        kind: ``"vgg16"``: after ReLU 1_2, 2_2 and 3_3, the pictures not normalised, as the paper's
            base has it. ``"efficientnet_lite0"``: three stages of EfficientNet-Lite0, whose weights
            come in a Python package where no hub can be reached; ``"imagenet:MODEL"``: those of
            another timm model. Or a module of your own: pictures (N, 3, H, W) in [0, 1] to a list
            of maps.
        weights: of ``"vgg16"``: None for torchvision's cache, ``"IMAGENET1K_V1"`` to fetch them, a
            file, tensors by name, or ``"random"`` for tests. Of the others: None for the package's,
            or what :func:`clipweather_fast.clip.build_prior_encoder` takes. Of your own: None.

    Reference:
        The perceptual term of Eq. 11 of arXiv 2306.09008, as TransWeather has it.

    Raises:
        clipweather_fast.clip.EncoderUnavailable: if a package or weights are missing; the message
            says what to install or pass.
        ValueError: for an unknown kind, or weights that do not belong to it.
    """

    def __init__(self, kind: str | nn.Module = "vgg16", weights: Weights | None = None) -> None:
        super().__init__()
        self.kind = kind if isinstance(kind, str) else type(kind).__name__
        self.network = _network(kind, weights)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> PerceptualLoss:
        """Stays in eval mode."""
        return super().train(False)

    def forward(self, y: Tensor, truth: Tensor) -> Tensor:
        """Pictures (N, 3, H, W), the truth in [0, 1], to a scalar, at least float32.

        Under autocast the network computes in its dtype, the distance in float32.

        Raises:
            TypeError, ValueError: if the pictures do not go together.
        """
        check_pictures("perceptual loss", y, truth)
        if y.shape[1] != 3:
            raise ValueError(
                f"perceptual loss: pictures must be (N, 3, H, W), got {tuple(y.shape)}"
            )
        with torch.no_grad():
            expected = self._maps(truth)
        found = self._maps(y)
        distances = [
            F.mse_loss(wide(a), wide(b.detach())) for a, b in zip(found, expected, strict=True)
        ]
        return torch.stack(distances).mean()

    def _maps(self, image: Tensor) -> Sequence[Tensor]:
        weight = next(self.network.parameters(), image)
        maps: Sequence[Tensor] = self.network(image.to(weight.dtype))
        if not maps:
            raise ValueError(f"perceptual loss {self.kind}: the network gives no map")
        return maps

    def extra_repr(self) -> str:
        """The kind."""
        return f"kind={self.kind!r}"


def _network(kind: str | nn.Module, weights: Weights | None) -> nn.Module:
    if isinstance(kind, nn.Module):
        if weights is not None:
            raise ValueError("perceptual loss: a module of your own has its weights; pass None")
        return kind
    # timm, and open_clip's helpers beside it, are loaded for this alone.
    from clipweather_fast.losses._perceptual_networks import ImageNetFeatures, VGG16Features

    family, _, model = kind.partition(":")
    if kind == "vgg16":
        return VGG16Features(weights)
    if kind == "efficientnet_lite0":
        return ImageNetFeatures("tf_efficientnet_lite0", weights)
    if family == "imagenet" and model:
        return ImageNetFeatures(model, weights)
    raise ValueError(
        f"perceptual loss: kind must be one of {', '.join(KINDS)} or a module, got {kind!r}"
    )
