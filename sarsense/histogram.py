"""Histograms of dB in bins of a twentieth: integer counts, which add up exactly in any order and any partition."""

from __future__ import annotations

import numpy as np

BIN_DB = 0.05
LOWEST_DB, _HIGHEST_DB = -150.0, 150.0
BINS = round((_HIGHEST_DB - LOWEST_DB) / BIN_DB)


def histogram_db(db: np.ndarray) -> np.ndarray:
    """Counts (int64, `BINS`) of the finite values."""
    finite = db[np.isfinite(db)]
    index = np.clip((finite - LOWEST_DB) / BIN_DB, 0, BINS - 1).astype(np.int64)
    return np.bincount(index, minlength=BINS)


def percentile_db(histogram: np.ndarray, percent: float, bin_db: float = BIN_DB) -> float:
    """The dB value below which `percent` of the counts lie, linear inside the bin."""
    cumulative = np.cumsum(histogram)
    target = cumulative[-1] * percent / 100.0
    index = int(np.searchsorted(cumulative, target))
    before = cumulative[index - 1] if index else 0
    inside = (target - before) / max(int(histogram[index]), 1)
    return LOWEST_DB + (index + float(inside)) * bin_db


def share_outside(histogram: np.ndarray, lo_db: float, hi_db: float) -> tuple[float, float]:
    """The shares of the counts below `lo_db` and above `hi_db`, to a bin."""
    edges = LOWEST_DB + BIN_DB * np.arange(BINS)
    total = max(int(histogram.sum()), 1)
    below, above = histogram[edges + BIN_DB <= lo_db].sum(), histogram[edges >= hi_db].sum()
    return float(below) / total, float(above) / total


def trimmed(histogram: np.ndarray) -> tuple[int, tuple[int, ...]]:
    """The first bin that counts and the counts from there to the last that does: for JSON. Undone by `whole`."""
    filled = np.flatnonzero(histogram)
    if not filled.size:
        return 0, ()
    return int(filled[0]), tuple(histogram[filled[0] : filled[-1] + 1].tolist())


def whole(first_bin: int, counts: tuple[int, ...] | list[int]) -> np.ndarray:
    """Counts (int64, `BINS`) of what `trimmed` returned."""
    histogram = np.zeros(BINS, np.int64)
    histogram[first_bin : first_bin + len(counts)] = counts
    return histogram
