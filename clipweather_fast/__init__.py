"""Fused kernels and drop-in modules for CLIP-guided adverse weather removal."""

from clipweather_fast import modules, ops
from clipweather_fast.models import accelerate, create_model, list_models
from clipweather_fast.ops import BackendUnavailable, explain, use_backend
from clipweather_fast.restore import Restorer

__all__ = [
    "BackendUnavailable",
    "Restorer",
    "accelerate",
    "create_model",
    "explain",
    "list_models",
    "modules",
    "ops",
    "use_backend",
]
__version__ = "0.1.0"
