"""Fused kernels and drop-in modules for CLIP-guided adverse weather removal."""

from clipweather_fast import modules, ops
from clipweather_fast.models import accelerate
from clipweather_fast.ops import BackendUnavailable, explain, use_backend
from clipweather_fast.restore import Restorer

__all__ = [
    "BackendUnavailable",
    "Restorer",
    "accelerate",
    "explain",
    "modules",
    "ops",
    "use_backend",
]
__version__ = "0.1.0"
