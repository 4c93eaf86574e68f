"""What the networks take from CLIP: a weather prior, a distillation teacher, text features.

Importing this loads neither open_clip nor timm; building an encoder that needs them does. Without
them, or without their weights, :class:`EncoderUnavailable` says in a sentence what is missing.
"""

from clipweather_fast.clip._packages import EncoderUnavailable
from clipweather_fast.clip.prior import PriorEncoder, build_prior_encoder
from clipweather_fast.clip.teacher import Teacher
from clipweather_fast.clip.text import TextFeatures, build_text_encoder, text_features
from clipweather_fast.clip.weather import WeatherClassifier

__all__ = [
    "EncoderUnavailable",
    "PriorEncoder",
    "Teacher",
    "TextFeatures",
    "WeatherClassifier",
    "build_prior_encoder",
    "build_text_encoder",
    "text_features",
]
