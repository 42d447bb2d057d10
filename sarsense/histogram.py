"""Histograms: integer counts, which add up exactly in any order and any partition; of dB in bins of a twentieth.

Positive float32 numbers sort as their bits do, so a value's bin is found without a logarithm: its upper bits
say where it can lie, and one comparison on which side of the edge it does. The same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sarsense.compiled import njit

BIN_DB = 0.05
LOWEST_DB, _HIGHEST_DB = -150.0, 150.0
BINS = round((_HIGHEST_DB - LOWEST_DB) / BIN_DB)
CELL = 15
"""bits that are left off: 8 of the 23 after the point stay"""


def histogram_db(db: np.ndarray) -> np.ndarray:
    """Counts (int64, `BINS`) of the finite values."""
    finite = db[np.isfinite(db)]
    index = np.clip((finite - LOWEST_DB) / BIN_DB, 0, BINS - 1).astype(np.int64)
    return np.bincount(index, minlength=BINS)


@dataclass(frozen=True)
class Bins:
    """Bins of positive numbers; what lies beyond the first or the last of them counts there."""

    number: int
    first: np.ndarray
    """uint32: of the values that share all but the lower `CELL` bits, the bin of the smallest"""
    next_from: np.ndarray
    """uint32: the bits from which on a value of these lies in the next bin"""


def bins_between(edges: np.ndarray) -> Bins:
    """Bins between rising edges, float64 (n + 1,): no two may lie within 1 part in 256 of each other."""
    cells = np.arange(0x7F800000 >> CELL, dtype=np.uint32) << np.uint32(CELL)
    smallest = cells.view(np.float32).astype(np.float64)
    first = np.clip(np.searchsorted(edges, smallest, side="right") - 1, 0, len(edges) - 2)
    edge = edges[first + 1].astype(np.float32)
    edge = np.where(edge < edges[first + 1], np.nextafter(edge, np.float32(np.inf)), edge)
    never = first == len(edges) - 2
    next_from = np.where(never, np.uint32(0xFFFFFFFF), edge.view(np.uint32))
    return Bins(len(edges) - 1, first.astype(np.uint32), next_from)


LEVELS = bins_between(10.0 ** ((LOWEST_DB + BIN_DB * np.arange(BINS + 1)) / 10.0))
"""of power, as `histogram_db` has them of dB"""


def count(values: np.ndarray, bins: Bins, counts: np.ndarray) -> None:
    """Add to counts, int64 (bins.number,), those of positive, finite values: float32 (N,)."""
    count_bits(values.view(np.uint32), bins.first, bins.next_from, counts)


@njit
def count_bits(bits: np.ndarray, first: np.ndarray, next_from: np.ndarray, counts: np.ndarray) -> None:
    """`count` for compiled code. Unsigned numbers throughout: compiled code checks signed indices."""
    for value in bits:
        cell = value >> np.uint32(CELL)
        counts[first[cell] + (value >= next_from[cell])] += 1


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


def whole(first_bin: int, counts: tuple[int, ...] | list[int], bins: int = BINS) -> np.ndarray:
    """Counts (int64, `bins`) of what `trimmed` returned."""
    histogram = np.zeros(bins, np.int64)
    histogram[first_bin : first_bin + len(counts)] = counts
    return histogram
