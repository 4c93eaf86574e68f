"""Restores pictures of any kind and size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from clipweather_fast.restore.engine import Engine, Report
from clipweather_fast.restore.kinds import Taken, take
from clipweather_fast.restore.picture import Picture

__all__ = ["Restorer"]

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class Restorer:
    """Removes snow, rain, haze and drops from pictures with a network.

    A picture is restored whole if that fits into memory, else in overlapping tiles that are
    blended where they meet; then it stays in the host's memory, and the network's weather prior is
    computed once, of the whole picture. If memory runs out all the same, the tile is halved and
    the work goes on. A result that is not finite is computed again in float32, with a
    :class:`PrecisionWarning`. ``report`` says what the last call did.

    In tiles, this package's networks attend to the whole picture all the same, and what lies at a
    tile's rim comes from its neighbours: the result is the whole picture's, to rounding. Of
    TransWeather's structure, and where a module is wrapped around a network, only attention is
    joined.
    Above 2048² pixels attention sees averages, which makes tiles faster than the whole. Networks
    with other attention judge every tile by itself.

    Args:
        model_or_name: a network, which is put in eval mode and moved; or the name of one with
            weights, a folder that ``save_pretrained`` wrote, or ``"hf-hub:OWNER/NAME"``. Any
            module that takes and gives (N, 3, H, W) in [0, 1] for every H and W will do. Without
            it, the small network whose weights come with the package.
        device: "cpu", "cuda", "cuda:1", …; "auto": a GPU if there is one.
        dtype: "float32", "bfloat16" or "float16"; "auto": bfloat16 for 8-bit pictures on devices
            with fast instructions for it (GPUs since sm_80, AMX, AMD's AVX512_BF16), else float32.
        tile: largest side of a tile in pixels, rounded to the network's stride; "auto": the whole
            picture if it fits, else the largest tile that does, at most 2048; None: never cut.
        tile_overlap: pixels that neighbouring tiles share, rounded up to the network's stride; with
            joint attention one stride more, and what the network needs (128 pixels mostly).
        compile: call the network through ``torch.compile`` where a picture is restored whole; every
            new size takes a while first.

    Raises:
        ValueError: an argument outside the above, or a name without weights.
    """

    def __init__(
        self,
        model_or_name: nn.Module | str | os.PathLike[str] = "clipweather_tiny",
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        tile: int | Literal["auto"] | None = "auto",
        tile_overlap: int = 32,
        compile: bool = False,
    ) -> None:
        if tile_overlap < 0:
            raise ValueError(f"Restorer: tile_overlap must not be negative, got {tile_overlap}")
        if tile is not None and tile != "auto":
            if isinstance(tile, str) or tile < 1:
                raise ValueError(f"Restorer: tile must be 'auto', None or positive, got {tile!r}")
            if tile_overlap >= tile:
                raise ValueError(
                    f"Restorer: tile_overlap must be less than tile, got {tile_overlap} and {tile}"
                )
        precision = _dtype(dtype)
        place = _device(device)
        model = model_or_name if isinstance(model_or_name, nn.Module) else _loaded(model_or_name)
        self._engine = Engine(model, place, precision, tile, tile_overlap, compile)
        #: Names the weather from the prior; see :meth:`classify`.
        self.classifier: nn.Module | None = getattr(model, "classifier", None)

    @property
    def model(self) -> nn.Module:
        """The network."""
        return cast(nn.Module, self._engine.model)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._engine.device

    @property
    def report(self) -> Report:
        """What the last call did."""
        return self._engine.report

    def __call__(self, picture: Any) -> Any:
        """Restores a picture, or a list of them.

        Args:
            picture: a path; a :class:`Picture`; an image of Pillow's; an array (H, W, 3) or gray
                (H, W) of uint8, uint16 or floating point in [0, 1]; a tensor (3, H, W) or
                (N, 3, H, W) of floating point in [0, 1] or uint8, on any device. A list of these;
                those of one size are restored together.

        Returns:
            The same kind, size, depth and device; of a path a :class:`Picture`, which has
            ``save(path)``; of a list a list. Gray stays gray, transparency is passed on.

        Raises:
            TypeError, ValueError: what is no picture.
            PictureError: a file that cannot be read.
            MemoryError: not even the smallest tile fits.
            ArithmeticError: the network gives NaN even in float32.
        """
        if isinstance(picture, list | tuple):
            return self._restored([take(one) for one in picture])
        return self._restored([take(picture)])[0]

    def restore_picture(self, picture: Picture) -> Picture:
        """Restores the colours of a decoded picture; the rest is passed on."""
        return cast(Picture, self(picture))

    def restore_frame(self, frame: NDArray[Any], prior: Tensor | None = None) -> NDArray[Any]:
        """Restores a frame (H, W, 3) of a video with the prior of this or a similar frame."""
        return cast("NDArray[Any]", self._restored([take(frame)], prior)[0])

    def encode_prior(self, picture: Any) -> Tensor | None:
        """The weather prior (N, dim) of a picture, for :meth:`restore_frame`; None: it has none."""
        return self._engine.encode_prior(take(picture).images)

    def classify(self, picture: Any) -> dict[str, float]:
        """The weather in a picture: probabilities by word, the likeliest first.

        The network's prior is compared with CLIP's features of "An image with snow", and so on.
        They are part of a checkpoint that was trained with them; for others set
        ``restorer.classifier`` to a :class:`clipweather_fast.clip.WeatherClassifier`.

        Args:
            picture: one, of any kind that a call takes.

        Raises:
            RuntimeError: there is no classifier, or the network uses no prior.
            ValueError: several pictures.
        """
        if self.classifier is None:
            raise RuntimeError(
                "Restorer.classify: the network's weights come without text features to compare "
                "its prior with; load a checkpoint that was trained with them, or set "
                "restorer.classifier to clipweather_fast.clip.WeatherClassifier.load(FILE)"
            )
        prior = self.encode_prior(picture)
        if prior is None:
            raise RuntimeError("Restorer.classify: the network uses no weather prior")
        if prior.shape[0] != 1:
            raise ValueError(f"Restorer.classify: takes one picture, got {prior.shape[0]}")
        head = getattr(self.model, "prior_head", None)
        with torch.inference_mode():
            vector = prior.float() if head is None else head(prior.float())
            named: dict[str, float] = self.classifier.to(self.device).named(vector)[0]  # type: ignore[operator]
        return named

    def _restored(self, pictures: Sequence[Taken], prior: Tensor | None = None) -> list[Any]:
        groups: dict[Any, list[tuple[Tensor, Tensor]]] = {}
        for taken in pictures:
            key = (taken.images.shape[2:], taken.images.dtype, taken.images.device)
            pairs = zip(taken.images.split(1), taken.out.split(1), strict=True)
            groups.setdefault(key, []).extend(pairs)
        self._engine.report = Report(str(self.device))
        for group in groups.values():
            self._engine.restore(group, prior)
        return [taken.give() for taken in pictures]


def _dtype(dtype: str | torch.dtype) -> torch.dtype | Literal["auto"]:
    if dtype == "auto":
        return "auto"
    found = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if found not in DTYPES.values():
        raise ValueError(f"Restorer: dtype must be 'auto' or one of {list(DTYPES)}, got {dtype!r}")
    return cast(torch.dtype, found)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = torch.device(device)
    if found.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"Restorer: device {str(device)!r} is not there: PyTorch sees no GPU")
    return found


def _loaded(name: str | os.PathLike[str]) -> nn.Module:
    """The network that a name or a folder stands for; a registered name comes first."""
    from clipweather_fast import models

    known = isinstance(name, str) and name in models.list_models()
    if not known and (isinstance(name, os.PathLike) or Path(name).exists()):
        return models.pretrained(os.fspath(name))
    return models.create_model(os.fspath(name), pretrained=True)
