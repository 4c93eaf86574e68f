"""What the networks are trained with: plain functions of tensors, each of one term.

The weights of the terms, and when a term begins, are the trainer's.
"""

from clipweather_fast.losses.perceptual import PerceptualLoss
from clipweather_fast.losses.psnr import psnr, psnr_loss
from clipweather_fast.losses.residual_distillation import (
    residual_distillation,
    residual_projections,
)
from clipweather_fast.losses.smooth_l1 import smooth_l1
from clipweather_fast.losses.ssim import ssim, ssim_loss
from clipweather_fast.losses.text_cross_entropy import text_cross_entropy

__all__ = [
    "PerceptualLoss",
    "psnr",
    "psnr_loss",
    "residual_distillation",
    "residual_projections",
    "smooth_l1",
    "ssim",
    "ssim_loss",
    "text_cross_entropy",
]
