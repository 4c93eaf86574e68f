"""Snow, rain with haze, and raindrops on clean photographs: physical, seeded, in PyTorch.

:func:`degrade` runs on the GPU inside a training step as well as offline; ``clipweather data
synth`` writes a dataset of pairs with it. Results on such pairs are called mini-synthetic: the
weather in them is made, however well.
"""

from clipweather_fast.data.synthesis.degrade import (
    WEATHERS,
    Weather,
    degrade,
    parameters,
    rain,
    raindrops,
    snow,
)
from clipweather_fast.data.synthesis.rain import Rain
from clipweather_fast.data.synthesis.raindrops import Raindrops
from clipweather_fast.data.synthesis.snow import Snow

__all__ = [
    "WEATHERS",
    "Rain",
    "Raindrops",
    "Snow",
    "Weather",
    "degrade",
    "parameters",
    "rain",
    "raindrops",
    "snow",
]
