"""Despeckle-aware normalisation: measured statistics -> 8-bit codes, and back.

The range of a group (sensor, mode, polarisation, quantity) is measured on *despeckled* dB, so that speckle tails and
point targets do not set it, and then widened by `SPECKLE_MARGIN` standard deviations of the log-speckle of the
group, so that the speckle itself is not clipped. Code 0 is no data; codes 1 to 255 are equal steps of dB.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from sarsense.speckle import log_bias_db, log_std_db

BIN_DB = 0.05
_LOWEST_DB, _HIGHEST_DB = -150.0, 150.0
BINS = round((_HIGHEST_DB - _LOWEST_DB) / BIN_DB)
PERCENTILES = (0.1, 99.9)
SPECKLE_MARGIN = 2.0
_MIN_SPAN_DB = 3.0
CODES = 254
"""steps between the lowest valid code, 1, and the highest, 255"""


def histogram_db(db: np.ndarray) -> np.ndarray:
    """Counts (int64, `BINS`) of the finite values; integer counts add up exactly in any order."""
    finite = db[np.isfinite(db)]
    index = np.clip((finite - _LOWEST_DB) / BIN_DB, 0, BINS - 1).astype(np.int64)
    return np.bincount(index, minlength=BINS)


def percentile_db(histogram: np.ndarray, percent: float) -> float:
    """The dB value below which `percent` of the counts lie, linear inside the bin."""
    cumulative = np.cumsum(histogram)
    target = cumulative[-1] * percent / 100.0
    index = int(np.searchsorted(cumulative, target))
    before = cumulative[index - 1] if index else 0
    inside = (target - before) / max(int(histogram[index]), 1)
    return _LOWEST_DB + (index + float(inside)) * BIN_DB


@dataclass(frozen=True)
class MeasuredBand:
    """What a scene's band gives to the statistics of its group."""

    histogram: np.ndarray
    """int64 (`BINS`): despeckled dB"""
    enl: float | None


@dataclass(frozen=True)
class GroupRange:
    """The dB range of a group: `lo_db` becomes code 1, `hi_db` code 255."""

    lo_db: float
    hi_db: float
    pixels: int
    speckle_std_db: float

    @property
    def step_db(self) -> float:
        return (self.hi_db - self.lo_db) / CODES


def group_range(bands: Iterable[MeasuredBand]) -> GroupRange:
    """The range of the pooled bands. Does not depend on their order: sums are of integers or sorted."""
    bands = list(bands)
    pooled = np.sum([band.histogram for band in bands], axis=0)
    known = sorted((band.enl, int(band.histogram.sum())) for band in bands if band.enl)
    pixels = int(pooled.sum())
    weight = sum(count for _, count in known)
    spread = sum(log_std_db(enl) * count for enl, count in known) / weight if weight else 0.0
    lo, hi = (percentile_db(pooled, percent) for percent in PERCENTILES)
    if hi - lo < _MIN_SPAN_DB:  # a nearly constant group: keep steps that mean something
        middle = (lo + hi) / 2
        lo, hi = middle - _MIN_SPAN_DB / 2, middle + _MIN_SPAN_DB / 2
    margin = SPECKLE_MARGIN * spread
    # rounded to a hundredth, so that the range reads well and survives JSON exactly
    return GroupRange(round(lo - margin, 2), round(hi + margin, 2), pixels, round(spread, 4))


def enl_bias_db(enl: float | None, quantity: str) -> float:
    """What the log of L-look speckle adds to the mean dB of a band, in dB; rounded so that it survives JSON.

    It is taken off before coding, so that scenes of unlike looks become commensurate. 8-bit pictures have no
    speckle statistics worth the name: theirs is 0.
    """
    return 0.0 if enl is None or quantity == "display" else round(log_bias_db(enl), 4)


def encode(db: np.ndarray, lo_db: float, hi_db: float) -> np.ndarray:
    """Codes, uint8, of dB values of any shape: 0 where NaN, else 1 + round((dB - lo) / step), clipped to 1..255."""
    step = np.float32((hi_db - lo_db) / CODES)
    codes = np.rint((db - np.float32(lo_db)) / step) + np.float32(1)
    codes = np.clip(codes, 1, CODES + 1)
    return np.where(np.isnan(codes), 0, codes).astype(np.uint8)


def decode(codes: np.ndarray, lo_db: float, hi_db: float) -> np.ndarray:
    """dB, float32, of codes of any shape; NaN where the code is 0. Inverse of `encode` to half a step."""
    step = (hi_db - lo_db) / CODES
    table = np.concatenate([[np.nan], lo_db + step * np.arange(CODES + 1)]).astype(np.float32)
    return table[codes]
