"""Networks, and what makes existing ones faster."""

from clipweather_fast.models.accelerate import AccelerationReport, Left, Swapped, accelerate
from clipweather_fast.models.checkpoints import load_checkpoint
from clipweather_fast.models.clip_weather import ClipWeather
from clipweather_fast.models.config import ClipWeatherConfig, NetworkConfig, TransWeatherConfig
from clipweather_fast.models.network import RestorationNetwork
from clipweather_fast.models.registry import (
    create_model,
    default_config,
    list_models,
    pretrained,
    register_model,
)
from clipweather_fast.models.transweather import TransWeather

__all__ = [
    "AccelerationReport",
    "ClipWeather",
    "ClipWeatherConfig",
    "Left",
    "NetworkConfig",
    "RestorationNetwork",
    "Swapped",
    "TransWeather",
    "TransWeatherConfig",
    "accelerate",
    "create_model",
    "default_config",
    "list_models",
    "load_checkpoint",
    "pretrained",
    "register_model",
]
