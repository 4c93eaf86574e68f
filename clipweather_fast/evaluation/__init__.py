"""Metrics by protocol name, and the evaluation of a restorer or of restored pictures."""

from clipweather_fast.evaluation.metrics import Score, psnr, score, ssim
from clipweather_fast.evaluation.protocols import PROTOCOLS, Protocol

__all__ = ["PROTOCOLS", "Protocol", "Score", "psnr", "score", "ssim"]
