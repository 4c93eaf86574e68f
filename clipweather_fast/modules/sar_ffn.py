"""The network's feed-forward block: ConvMlp plus the spatially-adaptive residual."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

from torch import Tensor, nn

from clipweather_fast import ops
from clipweather_fast.modules._tokens import as_image, check
from clipweather_fast.modules.conv_mlp import ConvMlp
from clipweather_fast.modules.sar_conv2d import SARConv2d

__all__ = ["SARFFN"]


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
        self.sar = SARConv2d(self.hidden_features, num_kernels, gate=gate)

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
        sar = self.sar
        mixed = ops.sar_mixer(
            as_image(self.fc1(x), H, W),
            sar.depthwise.weight,
            sar.depthwise.bias,
            sar.pointwise.weight,
            sar.pointwise.bias,
            sar.weight,
            sar.bias,
            self.static.weight,
            self.static.bias,
            gate=sar.gate,
            return_residual=return_residual,
        )
        if return_residual:
            hidden, residual = mixed
            return self._project(hidden), residual
        return self._project(mixed)
