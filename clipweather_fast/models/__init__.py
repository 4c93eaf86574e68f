"""Networks, and what makes existing ones faster."""

from clipweather_fast.models.accelerate import AccelerationReport, Left, Swapped, accelerate

__all__ = ["AccelerationReport", "Left", "Swapped", "accelerate"]
