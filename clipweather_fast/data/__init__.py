"""Datasets of degraded pictures and their truths: finding, checking, loading, mixing."""

from clipweather_fast.data.clean import CleanDataset
from clipweather_fast.data.cutmix import cutmix
from clipweather_fast.data.find import LAYOUTS, find_pairs
from clipweather_fast.data.pair import DatasetError, Pair, Problem
from clipweather_fast.data.paired import PairDataset
from clipweather_fast.data.sampler import EpochSampler
from clipweather_fast.data.transport import to_unit_range
from clipweather_fast.data.weathers import WEATHERS

__all__ = [
    "LAYOUTS",
    "WEATHERS",
    "CleanDataset",
    "DatasetError",
    "EpochSampler",
    "Pair",
    "PairDataset",
    "Problem",
    "cutmix",
    "find_pairs",
    "to_unit_range",
]
