"""What the tests of training share: a fresh state of accelerate."""

from training_runs import fresh_accelerate

__all__ = ["fresh_accelerate"]
