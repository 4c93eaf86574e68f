"""Metrics by protocol name, and the evaluation of a restorer or of restored pictures."""

from clipweather_fast.evaluation.cases import (
    Case,
    cases_of_dataset,
    cases_of_folders,
    cases_of_pairs,
    with_restored,
)
from clipweather_fast.evaluation.gallery import write_gallery
from clipweather_fast.evaluation.metrics import Score, psnr, score, ssim
from clipweather_fast.evaluation.protocols import PROTOCOLS, Protocol
from clipweather_fast.evaluation.records import JournalError, Record
from clipweather_fast.evaluation.run import evaluate, weights_digest
from clipweather_fast.evaluation.summary import Evaluation, Means

__all__ = [
    "PROTOCOLS",
    "Case",
    "Evaluation",
    "JournalError",
    "Means",
    "Protocol",
    "Record",
    "Score",
    "cases_of_dataset",
    "cases_of_folders",
    "cases_of_pairs",
    "evaluate",
    "psnr",
    "score",
    "ssim",
    "weights_digest",
    "with_restored",
    "write_gallery",
]
