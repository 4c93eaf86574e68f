"""ClipWeather: spatially-adaptive residuals, and what CLIP knows of the weather."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from clipweather_fast._autocast import no_autocast
from clipweather_fast.models._conv_decoder import ConvDecoder, Detail
from clipweather_fast.models._encoder import Encoder, ResidualPlace
from clipweather_fast.models._frozen_prior import FrozenPrior, built_encoder
from clipweather_fast.models._prior_embedding import PriorEmbedding, PriorHead
from clipweather_fast.models.config import ClipWeatherConfig
from clipweather_fast.models.network import RestorationNetwork
from clipweather_fast.modules import SARFFN, ConvMlp

if TYPE_CHECKING:
    from clipweather_fast.clip import WeatherClassifier

__all__ = ["ClipWeather"]


class ClipWeather(RestorationNetwork):
    """The network of "Exploring the Application of Large-scale Pre-trained Models on Adverse
    Weather Removal" (arXiv 2306.09008).

    An encoder whose feed-forward blocks filter every pixel with a kernel of its own; a
    transformer at stride 64 that asks the weather prior; a convolutional decoder.

    A frozen prior encoder (CLIP, ImageNet) is built from ``config.prior_encoder`` and
    ``config.prior_weights`` when a prior is first computed, is no submodule, and is in no
    checkpoint: 88 million parameters that never change. One that learns is the submodule
    ``prior_encoder`` from the start.

    Attributes:
        classifier: names the weather from the projected prior: a
            :class:`clipweather_fast.clip.WeatherClassifier` on fixed text features, or None. It is
            no submodule and not in the state dict; ``save_pretrained`` keeps it in a file of its
            own, ``from_pretrained`` finds it there.

    Args:
        config: see :class:`ClipWeatherConfig`; None: the paper's.
    """

    config_class = ClipWeatherConfig
    config: ClipWeatherConfig

    def __init__(self, config: ClipWeatherConfig | None = None) -> None:
        config = ClipWeatherConfig() if config is None else config
        super().__init__(config, size_multiple=64)
        self.encoder = Encoder(config, self._feed_forward, intra_patch=config.intra_patch)
        self.prior_embedding = PriorEmbedding(config)
        self._gated = config.residual_output == "gated"
        self.decoder = ConvDecoder(config.dims, config.decoder_tail, 4 if self._gated else 3)
        if config.detail_channels:
            self.detail = Detail(config.decoder_tail[1], config.detail_channels)
        self._frozen = FrozenPrior(config)
        self._classifier: list[nn.Module] = []
        if config.uses_prior:
            self.prior_head = PriorHead(config)
        if config.learns_prior:
            self.prior_encoder = built_encoder(config)
        if config.residual_output:  # begins as the identity
            nn.init.zeros_(self.decoder.conv_output.conv2d.weight)
            nn.init.zeros_(cast(Tensor, self.decoder.conv_output.conv2d.bias))
        self._lay_out_weights()

    def _feed_forward(self, dim: int) -> ConvMlp:
        config = self.config
        if config.num_kernels == 0:
            return ConvMlp(dim, config.mlp_ratio)
        return SARFFN(
            dim,
            config.mlp_ratio,
            config.num_kernels,
            gate=config.sar_gate,
            kernel_size=config.sar_kernel_size,
            kernel_bias=config.sar_bias,
            per_channel=config.sar_per_channel,
            arrangement=config.sar_arrangement,
            sign=config.sar_sign,
        )

    @property
    def shared_by_tiles(self) -> int:
        # On either side of the middle a place of the deepest grid, or what a block at stride 32
        # looks at beyond its own place.
        reach = self.config.sar_kernel_size // 2 + (self.config.sar_arrangement == "sequential")
        return 2 * max(64, 32 * reach)

    @property
    def image_encoder(self) -> Encoder:
        return self.encoder

    def restored(
        self, picture: Tensor, prior: Tensor | None, residuals: list[Tensor] | None
    ) -> Tensor:
        projected = None if prior is None else self.prior_head(prior).expand(picture.shape[0], -1)
        stages = self.encoder(picture, residuals)
        deepest = self.prior_embedding(stages[3], projected)
        features = self.decoder.features(stages, deepest)
        if self.config.detail_channels:
            features = self.detail(features, picture)
        y = torch.tanh(self.decoder.conv_output(features))
        if not self.config.residual_output:
            return y
        image = (picture + 1) / 2
        return y[:, :3] + (1 - y[:, 3:]) * image if self._gated else y + image

    def _check_prior(self, prior: Tensor | None, n: int) -> None:
        if not self.config.uses_prior:
            if prior is not None:
                raise ValueError(
                    f"{type(self).__name__}: prior_encoder is 'none', so prior must be None"
                )
            return
        dim = self.config.prior_dim
        if (
            prior is None
            or prior.dim() != 2
            or prior.shape[0] not in (1, n)
            or (prior.shape[1] != dim)
        ):
            got = None if prior is None else tuple(prior.shape)
            raise ValueError(
                f"{type(self).__name__}: prior must be (N or 1, prior_dim) = ({n} or 1, {dim}), "
                f"got {got}"
            )

    def residual_places(self) -> tuple[ResidualPlace, ...]:
        return self.encoder.residual_places() if self.config.num_kernels else ()

    @property
    def prior_length(self) -> int:
        return self.config.prior_dim if self.config.uses_prior else 0

    def encode_prior(self, image: Tensor) -> Tensor | None:
        """The prior (N, prior_dim) of whole pictures (N, 3, H, W) in [0, 1].

        A frozen encoder passes no gradient. It computes in float32; on the CPU, under autocast to
        bfloat16 and without gradients, CLIP's vision transformers multiply in bfloat16 where that
        is faster. One that
        learns computes in float32 on the CPU where no gradient is wanted, whatever autocast says.

        Raises:
            ValueError: if the encoder's vectors are not of length ``config.prior_dim``.
            clipweather_fast.clip.EncoderUnavailable: if the encoder's package or weights are
                missing; the message says what to install or pass.
        """
        self._check_image(image)
        if not self.config.uses_prior:
            return None
        if self.config.learns_prior:
            # So few channels gain nothing by bfloat16 on the CPU, and casts cost.
            casts = torch.is_grad_enabled() or image.device.type != "cpu"
            with nullcontext() if casts else no_autocast("cpu"):
                return cast(Tensor, self.prior_encoder(image))
        return self._frozen(image)

    @property
    def classifier(self) -> WeatherClassifier | None:
        """What names the weather from the projected prior, if it is known.

        Raises:
            TypeError: when something else than a WeatherClassifier or None is assigned.
            ValueError: when its features are not of length ``config.prior_width``, or the network
                uses no prior.
        """
        return cast("WeatherClassifier", self._classifier[0]) if self._classifier else None

    @classifier.setter
    def classifier(self, classifier: WeatherClassifier | None) -> None:
        from clipweather_fast.clip import WeatherClassifier

        if classifier is None:
            self._classifier = []
            return
        if not isinstance(classifier, WeatherClassifier):
            raise TypeError(
                f"{type(self).__name__}: classifier must be a WeatherClassifier or None, "
                f"got {type(classifier).__name__}"
            )
        if not self.config.uses_prior:
            raise ValueError(
                f"{type(self).__name__}: prior_encoder is 'none', so there is no prior to classify"
            )
        width = classifier.features.shape[1]
        if width != self.config.prior_width:
            raise ValueError(
                f"{type(self).__name__}: the classifier's text features must have length "
                f"prior_width = {self.config.prior_width}, got {width}"
            )
        self._classifier = [classifier]

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "classifier":  # nn.Module would make it a submodule and pass the property by
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)
