"""Everything between the two Linear layers of SARFFN."""

from clipweather_fast.ops.sar_mixer.op import sar_mixer

__all__ = ["sar_mixer"]
