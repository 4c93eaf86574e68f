"""Feed-forward block with a depthwise convolution between its Linear layers."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules import _construction
from clipweather_fast.modules._linear import linear
from clipweather_fast.modules._observation import observed
from clipweather_fast.modules._tokens import as_image, as_tokens, check

__all__ = ["ConvMlp"]


class ConvMlp(nn.Module):
    r"""Linear, depthwise 3×3, GELU, Linear: the Mlp of PVTv2, SegFormer and TransWeather.

    .. math:: y = \mathrm{fc2}(\mathrm{GELU}(\mathrm{DWConv}(\mathrm{fc1}(x))))

    The convolution reads the hidden tokens where they lie (no transposed copy) and applies bias and
    GELU in the same pass; layers that have hooks are called one by one. Parameters are named as in
    those networks: ``fc1``, ``dwconv.dwconv``, ``fc2``.

    Args:
        dim: channels of the tokens.
        mlp_ratio: hidden width = int(dim · mlp_ratio).
        in_features, hidden_features, out_features: the same by the names of TransWeather's Mlp, in
            place of ``dim`` and ``mlp_ratio``; the last two default to ``in_features``.
        act_layer: only ``nn.GELU``, accepted because those networks pass it.
        drop: dropout after the activation and after ``fc2``.

    Raises:
        ValueError: for sizes that are not positive, both or neither of ``dim`` and ``in_features``,
            another activation, or ``drop`` outside [0, 1).
    """

    def __init__(
        self,
        dim: int | None = None,
        mlp_ratio: float = 2.0,
        *,
        in_features: int | None = None,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__()
        who = type(self).__name__
        width, hidden = _widths(who, dim, mlp_ratio, in_features, hidden_features)
        out_features = width if out_features is None else out_features
        _construction.positive(who, out_features=out_features)
        _construction.probability(who, drop=drop)
        activation = act_layer()
        if not isinstance(activation, nn.GELU) or activation.approximate != "none":
            raise ValueError(f"{who}: act_layer must be nn.GELU (exact), got {activation!r}")
        self.fc1 = nn.Linear(width, hidden)
        convolution = _construction.depthwise(hidden)
        self.dwconv = nn.Sequential(OrderedDict(dwconv=convolution))
        self.act = activation
        self.fc2 = nn.Linear(hidden, out_features)
        self.drop = nn.Dropout(drop)
        self.apply(_construction.initialise)

    @property
    def hidden_features(self) -> int:
        """Channels between the two Linear layers."""
        return self.fc1.out_features

    @property
    def static(self) -> nn.Conv2d:
        """The depthwise convolution every pixel shares."""
        convolution = self.dwconv[0]
        assert isinstance(convolution, nn.Conv2d)
        return convolution

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Tokens (N, H·W, dim) to tokens (N, H·W, out_features), dense.

        Raises:
            ValueError: if ``x`` is not (N, H·W, dim).
        """
        check(type(self).__name__, x, H, W)
        return self._project(self._between(as_image(linear(x, self.fc1), H, W)))

    def _between(self, z: Tensor) -> Tensor:
        """What is between the Linear layers, (N, hidden, H, W) to the same."""
        if observed(self.dwconv, self.static, self.act):
            filtered: Tensor = self.act(self.dwconv(z))
            return filtered
        fused: Tensor = ops.depthwise_conv2d(
            z, self.static.weight, self.static.bias, activation="gelu"
        )
        return fused

    def _project(self, hidden: Tensor) -> Tensor:
        out: Tensor = self.drop(linear(self.drop(as_tokens(hidden)), self.fc2))
        return out


def _widths(
    who: str,
    dim: int | None,
    mlp_ratio: float,
    in_features: int | None,
    hidden_features: int | None,
) -> tuple[int, int]:
    """(input, hidden) widths from either way of naming them."""
    if (dim is None) == (in_features is None):
        raise ValueError(f"{who}: give either dim or in_features, got {dim!r} and {in_features!r}")
    if dim is None:
        width, hidden = in_features, in_features if hidden_features is None else hidden_features
    else:
        if not isinstance(mlp_ratio, (int, float)) or not mlp_ratio > 0:
            raise ValueError(f"{who}: mlp_ratio must be a positive number, got {mlp_ratio!r}")
        _construction.positive(who, dim=dim)
        width = dim
        hidden = int(dim * mlp_ratio) if hidden_features is None else hidden_features
    _construction.positive(who, in_features=width, hidden_features=hidden)
    assert width is not None
    assert hidden is not None
    return width, hidden
