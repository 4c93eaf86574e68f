"""Training: a task knows what to learn, the trainer how to go through it.

Importing this loads neither accelerate nor YAML; a trainer and a configuration file do.
"""

from clipweather_fast.training.config import TrainingConfig, read
from clipweather_fast.training.restoration import RestorationTask
from clipweather_fast.training.task import Batch, Examined, Progress, Task
from clipweather_fast.training.trainer import NonFiniteLoss, Outcome, Trainer

__all__ = [
    "Batch",
    "Examined",
    "NonFiniteLoss",
    "Outcome",
    "Progress",
    "RestorationTask",
    "Task",
    "Trainer",
    "TrainingConfig",
    "read",
]
