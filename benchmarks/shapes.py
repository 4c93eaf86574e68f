"""The shapes of the shipped network, by name: its four stages at common sizes of pictures.

Stage i of the encoder works at stride 4, 8, 16, 32 with 64, 128, 320, 512 channels; the hidden
width of its feed-forward layers is twice that.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PICTURES", "STAGES", "AttentionSize", "ImageSize", "attention_sizes", "hidden_sizes"]

#: Height and width of the picture.
PICTURES = {"256x256": (256, 256), "480x720": (480, 720), "1080p": (1080, 1920)}


@dataclass(frozen=True)
class Stage:
    """One encoder stage: its stride, width, attention heads and the reduction of their keys."""

    stride: int
    width: int
    heads: int
    reduction: int

    @property
    def hidden(self) -> int:
        return 2 * self.width


STAGES = {
    1: Stage(4, 64, 1, 4),
    2: Stage(8, 128, 2, 2),
    3: Stage(16, 320, 4, 2),
    4: Stage(32, 512, 4, 1),
}


@dataclass(frozen=True)
class ImageSize:
    """An image tensor (N, C, H, W) of the network."""

    name: str
    n: int
    c: int
    h: int
    w: int
    kernels: int = 3

    @property
    def elements(self) -> int:
        return self.n * self.c * self.h * self.w

    @property
    def pixels(self) -> int:
        return self.n * self.h * self.w


@dataclass(frozen=True)
class AttentionSize:
    """Attention of Lq queries over Lk keys, q (N, Lq, heads, d)."""

    name: str
    n: int
    queries: int
    keys: int
    heads: int
    d: int

    @property
    def query_elements(self) -> int:
        return self.n * self.queries * self.heads * self.d

    @property
    def key_elements(self) -> int:
        return self.n * self.keys * self.heads * self.d


def _grid(picture: str, stride: int) -> tuple[int, int]:
    """Rows and columns of a stage; every patch embedding rounds up."""
    height, width = PICTURES[picture]
    return -(-height // stride), -(-width // stride)


def _label(picture: str, batch: int) -> str:
    return picture if batch == 1 else f"{picture} batch {batch}"


def hidden_size(picture: str, stage: int, batch: int = 1) -> ImageSize:
    """The hidden image of one stage's feed-forward layers."""
    at = STAGES[stage]
    h, w = _grid(picture, at.stride)
    return ImageSize(f"{_label(picture, batch)} stage {stage}", batch, at.hidden, h, w)


def hidden_sizes(batches: dict[str, tuple[int, ...]]) -> list[ImageSize]:
    """Every picture and stage, for the batch sizes named per picture."""
    return [
        hidden_size(picture, stage, batch)
        for picture in PICTURES
        for batch in batches[picture]
        for stage in STAGES
    ]


def attention_size(picture: str, stage: int, batch: int = 1) -> AttentionSize:
    """The attention of one stage's main blocks."""
    at = STAGES[stage]
    h, w = _grid(picture, at.stride)
    keys = (h // at.reduction) * (w // at.reduction)
    label = f"{_label(picture, batch)} stage {stage}"
    return AttentionSize(label, batch, h * w, keys, at.heads, at.width // at.heads)


def attention_sizes(batches: dict[str, tuple[int, ...]]) -> list[AttentionSize]:
    """Every picture and stage, the wider intra-patch blocks, and the cross-attention to a prior."""
    sizes = [
        attention_size(picture, stage, batch)
        for picture in PICTURES
        for batch in batches[picture]
        for stage in STAGES
    ]
    sizes += [
        AttentionSize("256x256 intra-patch 1", 1, 1024, 64, 1, 128),
        AttentionSize("256x256 intra-patch 2", 1, 256, 64, 2, 160),
        AttentionSize("256x256 intra-patch 3", 1, 64, 16, 2, 256),
        AttentionSize("256x256 weather prior", 1, 64, 48, 8, 64),
        AttentionSize("1080p weather prior", 1, 2040, 48, 8, 64),
    ]
    return sizes
