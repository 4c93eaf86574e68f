"""Configurations of the networks: frozen dataclasses that check themselves.

Every field is an architectural choice; the defaults are the paper's, or this project's where the
paper is silent. Fields that change no parameter's shape (``drop_path_rate``, ``prior_weights``, …)
may be changed for a checkpoint that exists.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

__all__ = ["ClipWeatherConfig", "NetworkConfig", "TransWeatherConfig"]

#: Stride of each encoder stage.
STRIDES = (4, 8, 16, 32)
#: The largest width, length or number: a configuration from a stranger's file must not be able to
#: ask for more memory and time than a machine has before a tensor is compared.
LARGEST = 8192
COUNT = f"an integer from 1 to {LARGEST}"
RATIO = "above 0 and at most 64"
#: The most blocks of a stage.
DEEPEST = 256


@dataclass(frozen=True)
class NetworkConfig:
    """What both networks have: a four-stage encoder and a convolutional decoder.

    Attributes:
        dims: channels of the stages.
        depths: main blocks of the stages.
        heads: attention heads of the stages' main blocks.
        reductions: how many times per side each stage reduces its keys and values.
        intra_heads, intra_reductions: the same for the intra-patch block of stages 1 to 3, which
            works with the next stage's channels.
        mlp_ratio: hidden width of the encoder's feed-forward layers, in widths of their input.
        qkv_bias: whether queries, keys and values have biases.
        drop_path_rate: the largest rate of stochastic depth; it grows linearly over the blocks.
        decoder_tail: channels of the decoder at strides 2 and 1.
    """

    architecture: ClassVar[str] = ""

    dims: tuple[int, ...] = (64, 128, 320, 512)
    depths: tuple[int, ...] = (2, 2, 2, 2)
    heads: tuple[int, ...] = (1, 2, 4, 4)
    reductions: tuple[int, ...] = (4, 2, 2, 1)
    intra_heads: tuple[int, ...] = (1, 2, 2)
    intra_reductions: tuple[int, ...] = (4, 2, 2)
    mlp_ratio: float = 2.0
    qkv_bias: bool = True
    drop_path_rate: float = 0.1
    decoder_tail: tuple[int, ...] = (16, 8)

    def __post_init__(self) -> None:
        self._check()

    def _check(self) -> None:
        """``ValueError`` for the first field whose value is not allowed."""
        for name, length in (
            ("dims", 4),
            ("depths", 4),
            ("heads", 4),
            ("reductions", 4),
            ("intra_heads", 3),
            ("intra_reductions", 3),
            ("decoder_tail", 2),
        ):
            self._require_counts(name, length)
        self._require("depths", max(self.depths) <= DEEPEST, f"at most {DEEPEST} per stage")
        self._require_divisible("heads", self.heads, self.dims)
        self._require_divisible("intra_heads", self.intra_heads, self.dims[1:])
        self._require("mlp_ratio", _ratio(self.mlp_ratio), RATIO)
        self._require_flags("qkv_bias")
        rate = self.drop_path_rate
        self._require("drop_path_rate", _number(rate) and 0 <= rate < 1, "a rate in [0, 1)")

    @property
    def minimum_size(self) -> int:
        """The shortest side at which every stage has a whole window of keys."""
        strides = (*STRIDES, *STRIDES[1:])
        reductions = (*self.reductions, *self.intra_reductions)
        # A stage has ceil(side / stride) rows, and needs as many as its reduction.
        return max(s * (r - 1) + 1 for s, r in zip(strides, reductions, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON has them, and the network's name under ``"architecture"``."""
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        plain = {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}
        return {"architecture": self.architecture, **plain}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The configuration with these fields; those left out have their defaults.

        Raises:
            ValueError: for an unknown field, a value that is not allowed, or another
                architecture's configuration.
        """
        values = dict(values)
        architecture = values.pop("architecture", cls.architecture)
        if architecture != cls.architecture:
            raise ValueError(
                f"{cls.__name__}: the configuration is of architecture {architecture!r}, "
                f"not {cls.architecture!r}"
            )
        cls._known(values)
        fields: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
        }
        return cls(**fields)

    def replace(self, **changes: Any) -> Self:
        """A copy with some fields changed.

        Raises:
            ValueError: for an unknown field or a value that is not allowed.
        """
        return type(self).from_dict({**self.to_dict(), **changes})

    @classmethod
    def _known(cls, values: Mapping[str, Any]) -> None:
        names = [f.name for f in dataclasses.fields(cls)]
        for name in values:
            if name not in names:
                near = difflib.get_close_matches(str(name), names, 1)
                hint = f"; did you mean {near[0]!r}?" if near else f"; it has {', '.join(names)}"
                raise ValueError(f"{cls.__name__} has no field {name!r}{hint}")

    # ---- checks ----------------------------------------------------------------------------

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(
                f"{type(self).__name__}: {name} must be {expected}, got {getattr(self, name)!r}"
            )

    def _require_counts(self, name: str, length: int) -> None:
        value = getattr(self, name)
        right = isinstance(value, tuple) and len(value) == length and all(map(_count, value))
        self._require(name, right, f"a tuple of {length} integers from 1 to {LARGEST}")

    def _require_divisible(self, name: str, heads: tuple[int, ...], dims: tuple[int, ...]) -> None:
        for head, dim in zip(heads, dims, strict=True):
            self._require(name, dim % head == 0, f"divisors of the channels {dims}")

    def _require_flags(self, *names: str) -> None:
        for name in names:
            self._require(name, isinstance(getattr(self, name), bool), "True or False")

    def _require_word(self, name: str, *words: Any) -> None:
        value = getattr(self, name)
        # True and 1.0 equal 1, and 3.0 equals 3, but a layer has no 3.0 rows.
        known = any(type(value) is type(word) and value == word for word in words)
        self._require(name, known, "one of " + ", ".join(map(repr, words)))


@dataclass(frozen=True)
class ClipWeatherConfig(NetworkConfig):
    """The network of arXiv 2306.09008, and the variants its text and tables leave open.

    Attributes:
        intra_patch: whether stages are also linked by the intra-patch path.
        num_kernels: kernels the spatially-adaptive residual (SAR) mixes, 1 to 8; 0: no SAR, the
            feed-forward layers of the base network.
        sar_kernel_size: their size, 3, 5 or 7.
        sar_gate: ``"softmax"`` over the kernels, or ``"sigmoid"``.
        sar_arrangement: ``"parallel"``: GELU(DWConv(z) + R(z)); ``"sequential"``: with
            z' = DWConv(z), GELU(z' + R(z')); ``"direct"``: GELU(R(z)), nothing to be residual to.
        sar_sign: 1 adds R, -1 subtracts it.
        sar_bias: whether the mixed kernels have biases.
        sar_per_channel: weight maps of their own for every channel (in plain PyTorch only).
        prior_encoder: where the weather prior comes from: a kind of
            :func:`clipweather_fast.clip.build_prior_encoder`, or ``"none"``: the prior's tokens are
            learned and the same for every picture.
        prior_weights: the source of a frozen encoder's weights (a tag, file, folder, …).
        prior_dim: length of the encoder's vector.
        prior_width: length of the projected prior (that of CLIP's text features, which classify
            the weather) and of the prior's tokens.
        prior_activation: between the two linear layers that project it: ``"gelu"``, ``"relu"`` or
            ``"none"``.
        prior_tokens: M, learned tokens per prior block.
        prior_token_std: deviation of their initial values.
        prior_blocks, prior_heads, prior_mlp_ratio: the prior blocks.
        prior_fuse: ``"sum"``: E = P + γp; ``"concat"``: E = [P; γp].
        gamma_init: γ at the start. At 0 the prior has no influence until γ has learned.
        residual_output: whether the picture is added to what the network computes; a new network
            then gives back what it gets. ``"gated"``: the network also computes how much of the
            picture is added, tanh(F) + (1 - tanh(g)) · picture with g the last convolution's fourth
            channel, so that what hides the scene can be replaced and a veil divided out. The
            paper's (False) computes the picture itself.
        detail_channels: width of a branch at full resolution that shows the decoder's features the
            picture; 0: there is none, as in the paper's.
    """

    architecture: ClassVar[str] = "ClipWeather"

    intra_patch: bool = True
    num_kernels: int = 3
    sar_kernel_size: int = 3
    sar_gate: str = "softmax"
    sar_arrangement: str = "parallel"
    sar_sign: int = 1
    sar_bias: bool = True
    sar_per_channel: bool = False
    prior_encoder: str = "clip:ViT-B-32-quickgelu"
    prior_weights: str | None = "openai"
    prior_dim: int = 512
    prior_width: int = 512
    prior_activation: str = "gelu"
    prior_tokens: int = 48
    prior_token_std: float = 0.02
    prior_blocks: int = 3
    prior_heads: int = 8
    prior_mlp_ratio: float = 4.0
    prior_fuse: str = "sum"
    gamma_init: float = 0.0
    residual_output: bool | str = False
    detail_channels: int = 0

    @property
    def uses_prior(self) -> bool:
        """Whether the network looks at the picture through a prior encoder."""
        return self.prior_encoder != "none"

    @property
    def learns_prior(self) -> bool:
        """Whether the prior encoder is trained with the network; the others are frozen."""
        return self.prior_encoder.partition(":")[0] == "convolutional"

    def _check(self) -> None:
        super()._check()
        self._check_output()
        self._check_sar()
        self._check_prior()

    def _check_sar(self) -> None:
        self._require_flags("intra_patch", "sar_bias", "sar_per_channel")
        known = isinstance(self.num_kernels, int) and not isinstance(self.num_kernels, bool)
        self._require("num_kernels", known and 0 <= self.num_kernels <= 8, "an integer 0 to 8")
        self._require_word("sar_kernel_size", 3, 5, 7)
        self._require_word("sar_gate", "softmax", "sigmoid")
        self._require_word("sar_arrangement", "parallel", "sequential", "direct")
        self._require_word("sar_sign", 1, -1)

    def _check_output(self) -> None:
        self._require_word("residual_output", False, True, "gated")
        channels = self.detail_channels
        absent = channels == 0 and not isinstance(channels, bool)
        self._require("detail_channels", absent or _count(channels), f"0 or {COUNT}")

    def _check_prior(self) -> None:
        kind, weights = self.prior_encoder, self.prior_weights
        self._require("prior_encoder", isinstance(kind, str) and bool(kind), "a kind or 'none'")
        named = weights is None or isinstance(weights, str)
        self._require("prior_weights", named, "the name of a source of weights, or None")
        counts = ("prior_dim", "prior_width", "prior_tokens", "prior_blocks", "prior_heads")
        for name in counts:
            self._require(name, _count(getattr(self, name)), COUNT)
        self._require("prior_blocks", self.prior_blocks <= DEEPEST, f"at most {DEEPEST}")
        self._require_word("prior_activation", "gelu", "relu", "none")
        self._require_word("prior_fuse", "sum", "concat")
        ratio, std = self.prior_mlp_ratio, self.prior_token_std
        self._require("prior_mlp_ratio", _ratio(ratio), RATIO)
        self._require("prior_token_std", _number(std) and std >= 0, "0 or more")
        self._require("gamma_init", _number(self.gamma_init), "a number")
        divides = self.dims[3] % self.prior_heads == 0
        self._require("prior_heads", divides, f"a divisor of the channels {self.dims[3]}")


@dataclass(frozen=True)
class TransWeatherConfig(NetworkConfig):
    """TransWeather (arXiv 2111.14813), as its official code has it.

    Attributes:
        queries: learned queries of each decoder block, stretched to the number of tokens.
        query_blocks, query_heads, query_mlp_ratio: the decoder's transformer blocks.
    """

    architecture: ClassVar[str] = "TransWeather"

    queries: int = 48
    query_blocks: int = 3
    query_heads: int = 8
    query_mlp_ratio: float = 4.0

    def _check(self) -> None:
        super()._check()
        for name in ("queries", "query_blocks", "query_heads"):
            self._require(name, _count(getattr(self, name)), COUNT)
        self._require("query_blocks", self.query_blocks <= DEEPEST, f"at most {DEEPEST}")
        ratio = self.query_mlp_ratio
        self._require("query_mlp_ratio", _ratio(ratio), RATIO)
        divides = self.dims[3] % self.query_heads == 0
        self._require("query_heads", divides, f"a divisor of the channels {self.dims[3]}")


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _ratio(value: Any) -> bool:
    return _number(value) and 0 < value <= 64
