"""What every restoration network of this package is."""

from __future__ import annotations

import os
from abc import abstractmethod
from typing import Any, ClassVar, Literal, Self, overload

import torch
from torch import Tensor, nn

from clipweather_fast.models import checkpoints
from clipweather_fast.models._encoder import Encoder, ResidualPlace
from clipweather_fast.models._frozen import forms_available, frozen_form
from clipweather_fast.models._padding import padded_length
from clipweather_fast.models._picture_input import network_input
from clipweather_fast.models.config import NetworkConfig

__all__ = ["RestorationNetwork"]


class RestorationNetwork(nn.Module):
    """A picture taken in bad weather to the picture without the weather.

    Attributes:
        config: the frozen configuration it was built from.
        size_multiple: sides that are multiples of it are not padded.
        minimum_size: shorter sides are padded to it.
    """

    config_class: ClassVar[type[NetworkConfig]]

    def __init__(self, config: NetworkConfig, size_multiple: int) -> None:
        super().__init__()
        if type(config) is not self.config_class:
            raise TypeError(
                f"{type(self).__name__}: config must be a {self.config_class.__name__}, "
                f"got {type(config).__name__}"
            )
        self.config = config
        self.size_multiple = size_multiple
        self.minimum_size = padded_length(1, size_multiple, config.minimum_size)

    @abstractmethod
    def restored(
        self, picture: Tensor, prior: Tensor | None, residuals: list[Tensor] | None
    ) -> Tensor:
        """The network proper, on a padded and normalised picture (N, 3, H, W).

        It is what an export with dynamic sizes traces: :meth:`forward` decides on the padding by
        the sizes it sees.

        Args:
            picture: in [-1, 1], channels-last, sides that the strides divide.
            prior: as in :meth:`forward`, never missing where the network uses one.
            residuals: where the encoder's residual maps are to go.
        """

    @property
    def shared_by_tiles(self) -> int | None:
        """Pixels that neighbouring tiles of a picture share, at least, to be exact together.

        None: they cannot be, because something else than attention sees where a tile ends.
        """
        return None

    @property
    @abstractmethod
    def image_encoder(self) -> Encoder:
        """The encoder, by whatever name the network's parameters give it."""

    @property
    def prior_length(self) -> int:
        """Length of the vectors that :meth:`encode_prior` gives; 0 if it gives None."""
        return 0

    @property
    def any_layout(self) -> bool:
        """Whether forms read pictures on the CPU in any layout as fast as channels-last ones."""
        return forms_available()

    def encode_prior(self, image: Tensor) -> Tensor | None:
        """The weather prior of whole pictures (N, 3, H, W) in [0, 1]; None: there is none.

        It may be computed once and passed to :meth:`forward` with every tile of a picture, or with
        every similar frame of a video.
        """
        return None

    @overload
    def forward(
        self, image: Tensor, prior: Tensor | None = None, return_residuals: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(
        self, image: Tensor, prior: Tensor | None = None, *, return_residuals: Literal[True]
    ) -> tuple[Tensor, list[Tensor]]: ...

    @overload
    def forward(
        self, image: Tensor, prior: Tensor | None, return_residuals: Literal[True]
    ) -> tuple[Tensor, list[Tensor]]: ...

    def forward(
        self, image: Tensor, prior: Tensor | None = None, return_residuals: bool = False
    ) -> Tensor | tuple[Tensor, list[Tensor]]:
        """Restores pictures.

        The picture is padded to the right and below (mirrored; where a side is too short for that,
        its edge is repeated) until the strides divide it, and the result is cropped back.

        Args:
            image: RGB in [0, 1], (N, 3, H, W), any H, W ≥ 1. Best in float32 whatever the
                parameters' dtype: it is normalised first and cast to that then.
            prior: the pictures' prior (N, prior_dim), or one for all of them (1, prior_dim), as
                :meth:`encode_prior` gives it; None: it is computed here.
            return_residuals: also return the residual maps of the feed-forward blocks, for
                distillation, in the order of :meth:`residual_places`. They cover the padded
                picture; with sides that are multiples of ``size_multiple`` that is the picture.

        Returns:
            RGB (N, 3, H, W), channels-last, in the parameters' (or autocast's) dtype, in (-1, 1)
            and meant to be in [0, 1]: it is not clamped, because training needs its gradient.
            Where the picture is added, in (-1, 2), and not rounded to autocast's dtype.
            With ``return_residuals`` a pair of it and the list of maps (N, hidden, H', W').

        Raises:
            ValueError: if ``image`` is not (N, 3, H, W) with H, W ≥ 1, or ``prior`` does not fit.
            TypeError: if ``image`` is not a floating-point tensor.
        """
        self._check_image(image)
        if prior is None:
            prior = self.encode_prior(image)
        self._check_prior(prior, image.shape[0])
        form = None if return_residuals else frozen_form(self, image, prior)
        if form is not None:
            return form.restored(image, prior)
        picture = network_input(
            image, self.size_multiple, self.minimum_size, self.image_encoder.dtype
        )
        residuals: list[Tensor] | None = [] if return_residuals else None
        height, width = image.shape[2:]
        y = self.restored(picture, prior, residuals)
        if y.shape[2] != height or y.shape[3] != width:
            y = y[:, :, :height, :width]
        return y if residuals is None else (y, residuals)

    def residual_places(self) -> tuple[ResidualPlace, ...]:
        """Stage, kind, channels and stride of each residual map."""
        return ()

    def _check_image(self, image: Tensor) -> None:
        who = type(self).__name__
        if not isinstance(image, Tensor) or not image.is_floating_point():
            got = image.dtype if isinstance(image, Tensor) else type(image).__name__
            raise TypeError(
                f"{who}: image must be a floating-point tensor with values in [0, 1], got {got}"
            )
        if image.dim() != 4 or image.shape[1] != 3 or 0 in image.shape:
            raise ValueError(
                f"{who}: image must be (N, 3, H, W) with N, H, W ≥ 1, got {tuple(image.shape)}"
            )

    @abstractmethod
    def _check_prior(self, prior: Tensor | None, n: int) -> None:
        """``ValueError`` unless it is what :meth:`restored` takes with ``n`` pictures."""

    def _lay_out_weights(self) -> None:
        """Stores the dense convolutions' weights as the convolutions read them.

        With channels-last activations they would otherwise be copied so in every call. Depthwise
        kernels stay as this package's operators read them.
        """
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)) and module.groups == 1:
                weight = module.weight.detach().contiguous(memory_format=torch.channels_last)
                module.weight = nn.Parameter(weight, requires_grad=module.weight.requires_grad)

    # ---- checkpoints -----------------------------------------------------------------------

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes ``model.safetensors`` and ``config.json``; see :mod:`.checkpoints`.

        A network that can name the weather also gets ``text_features.safetensors``.
        """
        checkpoints.save(self, folder)

    @classmethod
    def from_pretrained(
        cls,
        source: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **changes: Any,
    ) -> Self:
        """The network of a folder or of a repository on the Hugging Face hub, in eval mode.

        Args:
            source: a folder, ``"local-dir:FOLDER"``, ``"hf-hub:OWNER/NAME[@REVISION]"`` or
                ``"OWNER/NAME"``.
            revision, cache_dir, force_download, local_files_only, token: as in huggingface_hub;
                they count for a repository alone.
            changes: fields of the configuration to change.

        Raises:
            ValueError: if the folder holds another architecture, an unknown field, or tensors that
                do not fit.
            FileNotFoundError: if there is no such folder or a file is missing in it.
        """
        from clipweather_fast.models.registry import pretrained

        hub = {
            "revision": revision,
            "cache_dir": cache_dir,
            "force_download": force_download,
            "local_files_only": local_files_only,
            "token": token,
        }
        network = pretrained(source, hub=hub, **changes)
        if not isinstance(network, cls):
            raise ValueError(
                f"{cls.__name__}.from_pretrained: {os.fspath(source)} holds a "
                f"{type(network).__name__}"
            )
        return network

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Push model using clipweather_fast.",
        private: bool | None = None,
        token: str | None = None,
        branch: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Uploads what :meth:`save_pretrained` writes, in one commit; returns its address.

        The arguments are those of huggingface_hub's ``push_to_hub``.
        """
        return checkpoints.push(
            self,
            repo_id,
            commit_message=commit_message,
            private=private,
            token=token,
            branch=branch,
            create_pr=create_pr,
        )
