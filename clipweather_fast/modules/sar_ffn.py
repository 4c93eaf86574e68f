"""The network's feed-forward block: ConvMlp plus the spatially-adaptive residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, overload

import torch.nn.functional as F
from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules import _construction
from clipweather_fast.modules._joined_layers import joins, mixer
from clipweather_fast.modules._linear import linear
from clipweather_fast.modules._observation import observed
from clipweather_fast.modules._tokens import as_image, check
from clipweather_fast.modules.conv_mlp import ConvMlp
from clipweather_fast.modules.sar_conv2d import SARConv2d

__all__ = ["SARFFN"]

ARRANGEMENTS = ("parallel", "sequential", "direct")


class SARFFN(ConvMlp):
    r"""Linear, depthwise 3×3 plus spatially-adaptive residual, GELU, Linear.

    .. math::
        z &= \mathrm{fc1}(x) \\
        y &= \mathrm{fc2}(\mathrm{GELU}(\mathrm{DWConv}(z) + R(z)))

    with R of :class:`SARConv2d`. Everything between the Linear layers is one operator
    (:func:`clipweather_fast.ops.sar_mixer`). A TransWeather Mlp's state dict loads with
    ``strict=False``: only the ``sar.*`` keys are new.

    Args:
        dim: channels of the tokens.
        mlp_ratio: hidden width = int(dim · mlp_ratio).
        num_kernels: K, 1 to 8.
        gate: ``"softmax"`` over K, or ``"sigmoid"``.
        kernel_size, kernel_bias, per_channel: as :class:`SARConv2d`.
        arrangement: ``"parallel"``, as above; ``"sequential"``: z' = DWConv(z) and
            GELU(z' + R(z')); ``"direct"``: GELU(R(z)), without the static convolution.
        sign: 1 adds R, -1 subtracts it.
        in_features, hidden_features, out_features, act_layer, drop: as :class:`ConvMlp`.

    Reference:
        Eqs. 2-5 of "Exploring the Application of Large-scale Pre-trained Models on Adverse Weather
        Removal" (arXiv 2306.09008).

    Raises:
        ValueError: as :class:`ConvMlp` and :class:`SARConv2d`.
    """

    def __init__(
        self,
        dim: int | None = None,
        mlp_ratio: float = 2.0,
        num_kernels: int = 3,
        *,
        gate: str = "softmax",
        kernel_size: int = 3,
        kernel_bias: bool = True,
        per_channel: bool = False,
        arrangement: str = "parallel",
        sign: int = 1,
        in_features: int | None = None,
        hidden_features: int | None = None,
        out_features: int | None = None,
        act_layer: Callable[[], nn.Module] = nn.GELU,
        drop: float = 0.0,
    ) -> None:
        super().__init__(
            dim,
            mlp_ratio,
            in_features=in_features,
            hidden_features=hidden_features,
            out_features=out_features,
            act_layer=act_layer,
            drop=drop,
        )
        who = type(self).__name__
        _construction.one_of(who, "arrangement", arrangement, ARRANGEMENTS)
        _construction.one_of(who, "sign", sign, (1, -1))
        self.arrangement, self.sign = arrangement, sign
        self.sar = SARConv2d(
            self.hidden_features,
            num_kernels,
            kernel_size,
            gate=gate,
            kernel_bias=kernel_bias,
            per_channel=per_channel,
        )
        if arrangement == "direct":
            del self.dwconv

    @overload
    def forward(
        self, x: Tensor, H: int, W: int, return_residual: Literal[False] = False
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, H: int, W: int, return_residual: Literal[True]
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self, x: Tensor, H: int, W: int, return_residual: bool = False
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Tokens (N, H·W, dim) to tokens (N, H·W, out_features), dense.

        With ``return_residual`` also R (N, hidden, H, W), which distillation compares with CLIP.

        Raises:
            ValueError: if ``x`` is not (N, H·W, dim).
        """
        check(type(self).__name__, x, H, W)
        if not return_residual and joins(x, self.fc1, self.fc2) and self.is_single_step():
            layers = self.fc1, self.fc2
            whole = mixer(x, (H, W), layers, *self.mixer_arguments())
            if whole is not None:
                return whole
        z = as_image(linear(x, self.fc1), H, W)
        if not return_residual:
            return self._project(self._between(z))
        if self._stepwise():
            hidden, residual = self._in_steps(z)
            return self._project(hidden), residual
        hidden, residual = self._mixed(z, return_residual)
        return self._project(hidden), residual if self.sign > 0 else -residual

    def is_single_step(self) -> bool:
        """Whether nothing but the operator is between the Linear layers, and nothing after them."""
        dropping = type(self.drop) is not nn.Dropout or (self.drop.training and self.drop.p > 0)
        return not (dropping or observed(self.drop) or self._stepwise())

    def _between(self, z: Tensor) -> Tensor:
        if self._stepwise():
            return self._in_steps(z)[0]
        mixed: Tensor = self._mixed(z, False)
        return mixed

    def _stepwise(self) -> bool:
        """Whether no one operator computes this variant, or somebody listens to its layers."""
        return self.arrangement == "sequential" or self.sar.per_channel or self._observed()

    def _mixed(self, z: Tensor, return_residual: bool) -> Any:
        """What is between the Linear layers, and R times the sign if wanted: one operator."""
        parameters, gate = self.mixer_arguments()
        return ops.sar_mixer(z, *parameters, gate=gate, return_residual=return_residual)

    def mixer_arguments(self) -> tuple[tuple[Any, ...], str]:
        """The operator's parameters in its order, and its gate."""
        sar = self.sar
        weight: Tensor = sar.weight
        bias: Tensor | None = sar.bias
        if self.sign < 0:
            weight, bias = -weight, None if bias is None else -bias
        static_weight: Tensor | None = None
        static_bias: Tensor | None = None
        if self.arrangement == "parallel":
            static_weight, static_bias = self.static.weight, self.static.bias
            border = sar.kernel_size // 2 - 1
            if border:  # the operator's kernels are of one size
                static_weight = F.pad(static_weight, (border,) * 4)
        predictor = (
            sar.depthwise.weight,
            sar.depthwise.bias,
            sar.pointwise.weight,
            sar.pointwise.bias,
        )
        return (*predictor, weight, bias, static_weight, static_bias), sar.gate

    def _observed(self) -> bool:
        """Whether a layer that the operator replaces has hooks."""
        own = () if self.arrangement == "direct" else (self.dwconv, self.static)
        return observed(self.sar, self.sar.depthwise, self.sar.pointwise, self.act, *own)

    def _in_steps(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The same and R, for the variants that no one operator computes, and for hooks."""
        static: Tensor | float = 0.0
        if self.arrangement != "direct":
            if observed(self.dwconv, self.static):
                static = self.dwconv(z)
            else:
                static = ops.depthwise_conv2d(z, self.static.weight, self.static.bias)
        if self.arrangement == "sequential":
            assert isinstance(static, Tensor)
            z = static
        residual = self.sar(z)
        return self.act(static + self.sign * residual), residual
