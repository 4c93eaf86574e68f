"""Drop-in ``nn.Module``s: parameter names and signatures of the blocks they replace."""

from clipweather_fast.modules.conv_mlp import ConvMlp
from clipweather_fast.modules.efficient_attention import EfficientAttention
from clipweather_fast.modules.sar_conv2d import SARConv2d
from clipweather_fast.modules.sar_ffn import SARFFN

__all__ = ["SARFFN", "ConvMlp", "EfficientAttention", "SARConv2d"]
