"""What restoring a picture takes on this machine, against plain PyTorch."""

from clipweather_fast.speed.clock import Times, in_turn
from clipweather_fast.speed.networks import NETWORKS, GivenPrior, network_for_timing
from clipweather_fast.speed.plain import pytorch_alone
from clipweather_fast.speed.table import SIZES, Case, Row, WrongPicture, measured

__all__ = [
    "NETWORKS",
    "SIZES",
    "Case",
    "GivenPrior",
    "Row",
    "Times",
    "WrongPicture",
    "in_turn",
    "measured",
    "network_for_timing",
    "pytorch_alone",
]
