"""CLIP's features of a few sentences: computed once, kept as a small file."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast.clip import _towers
from clipweather_fast.clip._packages import import_open_clip
from clipweather_fast.clip.weights import Weights

__all__ = [
    "TEMPLATE",
    "WEATHERS",
    "TextEncoder",
    "TextFeatures",
    "build_text_encoder",
    "text_features",
]

TEMPLATE = "An image with {}"
WEATHERS = ("snow", "rain", "raindrop")
FORMAT = "clipweather_fast.text_features"


@dataclass(frozen=True, eq=False)
class TextFeatures:
    """The features of one sentence per word.

    Attributes:
        features: (K, dim), float32, rows of length one.
        words: the K words.
        template: the sentence, with ``{}`` where the word goes.
        encoder: what computed them, for the record.

    Raises:
        TypeError, ValueError: if they do not belong together.
    """

    features: Tensor
    words: tuple[str, ...] = WEATHERS
    template: str = TEMPLATE
    encoder: str = "unknown"

    def __post_init__(self) -> None:
        check_words(self.words)
        check_template(self.template)
        if not isinstance(self.features, Tensor) or not self.features.is_floating_point():
            raise TypeError("text features: features must be a floating-point tensor")
        if self.features.dim() != 2 or self.features.shape[0] != len(self.words):
            raise ValueError(
                f"text features: features must be (K, dim) with K = {len(self.words)} words, "
                f"got {tuple(self.features.shape)}"
            )
        lengths = self.features.detach().float().norm(dim=1)
        # NaN fails this as well.
        if not bool(((lengths - 1.0).abs() < 1e-2).all()):
            raise ValueError(
                f"text features: every row must be finite and of length one, got lengths "
                f"{[round(length, 4) for length in lengths.tolist()]}; normalise them"
            )
        normal = F.normalize(self.features.detach().float(), dim=1)
        object.__setattr__(self, "features", normal)

    def save(self, path: str | os.PathLike[str], **more: str) -> None:
        """Writes a safetensors file, aside first, so that it is there whole or not at all.

        Args:
            path: the file.
            more: what else its metadata is to say.
        """
        from safetensors.torch import save

        about = {
            "format": FORMAT,
            "words": json.dumps(self.words),
            "template": self.template,
            "encoder": self.encoder,
        }
        data = save({"features": self.features.cpu().contiguous()}, metadata=more | about)
        path = Path(path)
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
            aside = Path(folder) / path.name
            aside.write_bytes(data)
            os.replace(aside, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TextFeatures:
        """Reads what :meth:`save` wrote.

        Raises:
            OSError: if there is no such file.
            ValueError: if it holds something else.
        """
        return cls.load_with_metadata(path)[0]

    @classmethod
    def load_with_metadata(
        cls, path: str | os.PathLike[str]
    ) -> tuple[TextFeatures, dict[str, str]]:
        """As :meth:`load`, and all that the file's metadata says.

        Raises:
            OSError: if there is no such file.
            ValueError: if it holds something else.
        """
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file of text features {path}")
        try:
            with safe_open(path, framework="pt") as file:
                about = file.metadata() or {}
                if about.get("format") != FORMAT:
                    raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
                words = json.loads(about["words"])
                if not isinstance(words, list):
                    raise ValueError(f"its words are {words!r}, not a list")
                features = file.get_tensor("features")
            encoder = about.get("encoder", "unknown")
            return cls(features, tuple(words), about["template"], encoder), about
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is not a file of text features: {error}") from error


def check_words(words: Sequence[str]) -> None:
    """``ValueError`` unless these are different, non-empty words."""
    proper = all(isinstance(word, str) and word for word in words)
    if not words or not proper or len(set(words)) != len(words):
        raise ValueError(f"text features: words must be different, non-empty words, got {words!r}")


def check_template(template: str) -> None:
    """``ValueError`` unless the sentence has one place for a word."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ValueError(f"text features: template must contain {{}} once, got {template!r}")


class TextEncoder(nn.Module):
    """A CLIP model's frozen text tower: sentences to vectors of length one (``encode_text``)."""

    def __init__(self, kind: str, model: _towers.Architecture, tower: nn.Module) -> None:
        super().__init__()
        self.kind, self.dim = kind, model.embed_dim
        self.tower = tower.requires_grad_(False)
        length = model.text.get("context_length", 77)
        self.tokenize = import_open_clip(kind).SimpleTokenizer(context_length=length)
        self.eval()

    def train(self, mode: bool = True) -> TextEncoder:
        """Stays in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, sentences: Sequence[str]) -> Tensor:
        """K sentences to (K, dim), rows of length one. What exceeds the context is cut off."""
        device = next(self.parameters()).device
        tokens = self.tokenize(list(sentences)).to(device)
        encode = cast(Callable[[Tensor], Tensor], self.tower.encode_text)
        return F.normalize(encode(tokens).float(), dim=-1)


def build_text_encoder(kind: str, weights: Weights | None = None) -> TextEncoder:
    """The text tower that belongs to ``build_prior_encoder(kind, weights)``.

    Args:
        kind: ``"clip:MODEL"`` with an open_clip model name, e.g. ``"clip:ViT-B-32-quickgelu"``.
        weights: as for :func:`build_prior_encoder`; the same file serves both towers.

    Raises:
        EncoderUnavailable: if open_clip or the weights are missing; the message says what to do.
        ValueError: for a kind that has no text tower, and for weights that do not belong to it.
    """
    family, _, name = kind.partition(":")
    if family != "clip" or not name:
        raise ValueError(f"text encoder: kind must be clip:MODEL, got {kind!r}")
    model = _towers.architecture(kind, name)
    return TextEncoder(kind, model, _towers.text_tower(kind, model, weights))


def text_features(
    encoder: Callable[[list[str]], Tensor],
    words: Sequence[str] = WEATHERS,
    template: str = TEMPLATE,
) -> TextFeatures:
    """The features of ``template`` with each word in it, to be saved and used ever after.

    Args:
        encoder: K sentences to (K, dim); a :class:`TextEncoder`, or another's.
        words: one per class.
        template: with ``{}`` where the word goes.

    Raises:
        ValueError: for words or a template that will not do.
    """
    check_words(words)
    check_template(template)
    with torch.no_grad():
        features = encoder([template.replace("{}", word) for word in words])
    name = getattr(encoder, "kind", type(encoder).__name__)
    return TextFeatures(F.normalize(features.float(), dim=-1), tuple(words), template, str(name))
