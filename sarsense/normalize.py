"""Despeckle-aware normalisation: measured statistics -> the dB range that becomes the codes.

The range of a group (sensor, mode, polarisation, quantity) is measured on *despeckled* dB, so that speckle tails and
point targets do not set it, and then widened by `SPECKLE_MARGIN` standard deviations of log-speckle, so that the
speckle itself is not clipped.

Three things make the same ground the same code whoever looked at it. What a filter leaves of the speckle depends on the
looks and would widen the histogram of some: all are blurred to what it leaves of a single look. A few scenes unlike the
others do not move the range: at each level no scene counts more than all but a few do. And the margin is one for all
groups of a corpus, that of the one with the fewest looks.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from sarsense.histogram import BIN_DB, percentile_db
from sarsense.speckle import SIZE, log_bias_db, log_std_db

PERCENTILES = (0.1, 99.9)
SPECKLE_MARGIN = 2.0
_MIN_SPAN_DB = 3.0
_LEVEL_BINS = 10
"""bins of half a dB, in which scenes are compared"""
_UNLIKE_SHARE, _ENOUGH_SCENES = 0.03, 10
"""of the scenes of a group, as many may be unlike the others, from so many scenes on"""
_FINENESS = 16
"""of a pixel, after blurring: whole numbers add up exactly in any order"""
_FIXED_DB, _FIXED_CROSS_DB = (-30.0, 5.0), (-35.0, 0.0)


@dataclass(frozen=True)
class MeasuredBand:
    """What a scene's band gives to the statistics of its group."""

    histogram: np.ndarray
    """int64 (`BINS`): despeckled dB"""
    enl: float | None
    display: bool = False
    """of an 8-bit picture"""


@dataclass(frozen=True)
class GroupRange:
    """The dB range of a group: `lo_db` becomes code 1, `hi_db` the highest code."""

    lo_db: float
    hi_db: float
    pixels: int
    """whose despeckled levels were counted: those of every second row"""
    speckle_std_db: float
    """s(L) of the noisiest scenes of the group, but for a few"""


def group_ranges(groups: Mapping[str, Iterable[MeasuredBand]], least_std_db: float = 0.0) -> dict[str, GroupRange]:
    """The range of each group of a corpus, by its name. least_std_db: s(L) of groups that have their range already.

    Does not depend on the order of groups or bands: sums are of whole numbers, or sorted. Groups of 8-bit pictures
    have margins of their own, all others that of the group with the most speckle.
    """
    pooled = {name: list(bands) for name, bands in sorted(groups.items())}
    spreads = {name: _speckle_std_db(bands) for name, bands in pooled.items()}
    display = {name for name, bands in pooled.items() if any(band.display for band in bands)}
    most = max((spread for name, spread in spreads.items() if name not in display), default=0.0)
    most = max(most, least_std_db)
    ranges = {}
    for name, bands in pooled.items():
        lo, hi = _ground_range(bands)
        margin = SPECKLE_MARGIN * (spreads[name] if name in display else most)
        pixels = sum(int(band.histogram.sum()) for band in bands)
        # rounded to a hundredth, so that the range reads well and survives JSON exactly
        ranges[name] = GroupRange(round(lo - margin, 2), round(hi + margin, 2), pixels, round(spreads[name], 4))
    return ranges


def scene_range(band: MeasuredBand) -> GroupRange:
    """The range of a band measured on itself alone: comparable with no other."""
    return group_ranges({"scene": [band]})["scene"]


def fixed_range(polarisation: str) -> tuple[float, float]:
    """dB range of sigma or gamma nought that many use without looking: -30 to 5, cross-polarised -35 to 0."""
    return _FIXED_CROSS_DB if polarisation in ("VH", "HV") else _FIXED_DB


def _speckle_std_db(bands: list[MeasuredBand]) -> float:
    """The s(L) that all but `_UNLIKE_SHARE` of the pixels do not exceed; 0 where no looks are known."""
    known = sorted((log_std_db(band.enl), int(band.histogram.sum())) for band in bands if band.enl)
    if not known:
        return 0.0
    below = np.cumsum([count for _, count in known])
    return known[int(np.searchsorted(below, (1 - _UNLIKE_SHARE) * below[-1]))][0]


def _ground_range(bands: list[MeasuredBand]) -> tuple[float, float]:
    """The `PERCENTILES` of the ground's dB, at least `_MIN_SPAN_DB` apart: those of a nearly constant group are not."""
    levels = np.array([_blurred(band).reshape(-1, _LEVEL_BINS).sum(axis=1) for band in bands])
    total = _without_unlike(levels)
    lo, hi = (percentile_db(total, percent, BIN_DB * _LEVEL_BINS) for percent in PERCENTILES)
    if hi - lo < _MIN_SPAN_DB:
        middle = (lo + hi) / 2
        lo, hi = middle - _MIN_SPAN_DB / 2, middle + _MIN_SPAN_DB / 2
    return lo, hi


def _without_unlike(levels: np.ndarray) -> np.ndarray:
    """Sum over scenes of int64 (scenes, levels), where at each level no scene counts more than the next after the
    `_UNLIKE_SHARE` of scenes that have the most there: what only they have is left out."""
    scenes = len(levels)
    unlike = math.ceil(_UNLIKE_SHARE * scenes) if scenes >= _ENOUGH_SCENES else 0
    cap = np.partition(levels, scenes - 1 - unlike, axis=0)[scenes - 1 - unlike]
    return np.minimum(levels, cap).sum(axis=0)


def _blurred(band: MeasuredBand) -> np.ndarray:
    """The histogram as if the scene had been seen with one look: `_FINENESS` times the counts, int64 (`BINS`).

    A boxcar of SIZE^2 pixels leaves speckle of L SIZE^2 looks, nearly Gaussian in dB: variances add up.
    """
    missing = 0.0
    if band.enl is not None:
        missing = log_std_db(SIZE * SIZE) ** 2 - log_std_db(max(band.enl, 1.0) * SIZE * SIZE) ** 2
    spread = math.sqrt(max(missing, 0.0)) / BIN_DB
    if spread < 0.5:
        return band.histogram * _FINENESS
    offsets = np.arange(-math.ceil(4 * spread), math.ceil(4 * spread) + 1)
    kernel = np.exp(-0.5 * (offsets / spread) ** 2)
    blurred = np.convolve(band.histogram * float(_FINENESS), kernel / kernel.sum(), mode="same")
    return np.rint(blurred).astype(np.int64)


def enl_bias_db(enl: float | None, quantity: str) -> float:
    """What the log of L-look speckle adds to the mean dB of a band, in dB; rounded so that it survives JSON.

    It is taken off before coding, so that scenes of unlike looks become commensurate. 8-bit pictures have no
    speckle statistics worth the name: theirs is 0.
    """
    return 0.0 if enl is None or quantity == "display" else round(log_bias_db(enl), 4)
