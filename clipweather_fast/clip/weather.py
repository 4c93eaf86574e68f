"""Which weather a picture was taken in, by CLIP's text features."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.clip.text import TEMPLATE, WEATHERS, TextFeatures, check_words

__all__ = ["WeatherClassifier"]


class WeatherClassifier(nn.Module):
    r"""Compares a prior with the text features of the weathers.

    .. math:: \mathrm{logits}_k = \tau \cos(p, t_k), \qquad P = \mathrm{softmax}(\mathrm{logits})

    The features are a fixed buffer (K, dim), part of the state dict. Without ``text`` they are NaN
    until a checkpoint or :meth:`set_text` fills them, so nothing that was never trained passes for
    an answer.

    Args:
        text: the features; decides ``words`` and ``dim``.
        words: without ``text``, one per class.
        dim: without ``text``, the length of a prior.
        tau: the scale of the cosine; 100 is CLIP's own.

    Numerics:
        float32, under autocast too.

    Reference:
        The text classification loss of arXiv 2306.09008, which is the cross entropy of
        :meth:`logits`.

    Raises:
        ValueError: for an argument outside the above.
    """

    features: Tensor

    def __init__(
        self,
        text: TextFeatures | None = None,
        *,
        words: Sequence[str] = WEATHERS,
        dim: int = 512,
        tau: float = 100.0,
    ) -> None:
        super().__init__()
        check_words(words)
        if isinstance(dim, bool) or not isinstance(dim, int) or dim < 1:
            raise ValueError(f"WeatherClassifier: dim must be a positive integer, got {dim!r}")
        if isinstance(tau, bool) or not isinstance(tau, (int, float)) or not 0.0 < tau < 1e6:
            raise ValueError(f"WeatherClassifier: tau must be a positive number, got {tau!r}")
        self.words, self.tau = tuple(words) if text is None else text.words, float(tau)
        self.template = TEMPLATE if text is None else text.template
        self.encoder = "unknown" if text is None else text.encoder
        unset = torch.full((len(self.words), dim), float("nan"))
        self.register_buffer("features", unset if text is None else text.features.clone())

    def set_text(self, text: TextFeatures) -> None:
        """Takes these features, in the buffer's dtype and on its device.

        Raises:
            ValueError: if their words or length are not this classifier's.
        """
        if text.words != self.words or text.features.shape != self.features.shape:
            raise ValueError(
                f"WeatherClassifier: text must have the words {self.words} and features of shape "
                f"{tuple(self.features.shape)}, got {text.words} and {tuple(text.features.shape)}"
            )
        self.features.copy_(text.features)
        self.template, self.encoder = text.template, text.encoder

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the features, their words and tau as a file that ``TextFeatures.load`` reads too.

        Raises:
            RuntimeError: if there are no text features.
        """
        if not self.ready:
            raise RuntimeError("WeatherClassifier: there are no text features to save")
        features = F.normalize(self.features.float(), dim=1)
        text = TextFeatures(features, self.words, self.template, self.encoder)
        text.save(path, tau=repr(self.tau))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> WeatherClassifier:
        """Reads what :meth:`save` or ``TextFeatures.save`` wrote; without a tau it is 100.

        Raises:
            OSError: if there is no such file.
            ValueError: if it holds something else.
        """
        text, about = TextFeatures.load_with_metadata(path)
        try:
            return cls(text, tau=float(about.get("tau", "100")))
        except ValueError as error:
            raise ValueError(f"{path} is not a file of text features: {error}") from error

    @property
    def ready(self) -> bool:
        """Whether there are features (reads the buffer, so it waits for a GPU)."""
        return bool(self.features.isfinite().all())

    def logits(self, prior: Tensor) -> Tensor:
        """Priors (N, dim) to τ·cos (N, K), float32.

        Raises:
            ValueError: if ``prior`` is not (N, dim).
        """
        if prior.dim() != 2 or prior.shape[1] != self.features.shape[1]:
            raise ValueError(
                f"WeatherClassifier: prior must be (N, dim) with dim = {self.features.shape[1]}, "
                f"got {tuple(prior.shape)}"
            )
        # Not a matrix product: autocast would round a cosine that is then multiplied by a hundred.
        p = F.normalize(prior.float(), dim=1)
        t = F.normalize(self.features.float(), dim=1)
        return self.tau * (p[:, None] * t[None]).sum(-1)

    def forward(self, prior: Tensor) -> Tensor:
        """Priors (N, dim) to probabilities (N, K) in the order of ``words``, float32."""
        return self.logits(prior).softmax(1)

    @torch.no_grad()
    def named(self, prior: Tensor) -> list[dict[str, float]]:
        """Priors (N, dim) to one ``{word: probability}`` per picture, most likely first.

        Raises:
            RuntimeError: if there are no text features, or the prior is not finite.
        """
        if not self.ready:
            raise RuntimeError(
                "WeatherClassifier: there are no text features, so the weather cannot be named; "
                "load a checkpoint trained with them, or compute them with "
                "clipweather_fast.clip.text_features and set_text"
            )
        rows = self.forward(prior).tolist()
        if any(value != value for row in rows for value in row):
            raise RuntimeError("WeatherClassifier: the prior is not finite")
        return [
            dict(sorted(zip(self.words, row, strict=True), key=lambda pair: -pair[1]))
            for row in rows
        ]

    def extra_repr(self) -> str:
        """The words and tau."""
        return f"{', '.join(self.words)}, tau={self.tau:g}"
