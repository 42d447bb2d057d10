"""The equivalent number of looks (ENL) of a scene, without supervision.

Small blocks of a scene hold slopes, edges, texture and targets as well as speckle, and so vary more than speckle does;
those that hold one ground alone vary least. How steeply the left flank of the histogram of a local statistic rises
tells where speckle alone lies, whatever share of the blocks is pure: the flank of pure blocks has a known shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from scipy.special import polygamma

BLOCK = 7
"""side of the square blocks, in pixels, in which local statistics are taken"""

_EDGES = np.geomspace(1e-6, 50.0, 2401)
"""of the bins of both statistics"""
_OFFSETS = np.arange(BLOCK) - BLOCK // 2
_SLOPES = np.stack((np.tile(_OFFSETS, BLOCK), np.repeat(_OFFSETS, BLOCK)), 1) / np.sqrt(BLOCK * np.sum(_OFFSETS**2))
"""two orthonormal planes over a block: what slopes of the ground add to its variance"""
_FREEDOM = BLOCK * BLOCK - 3
_FLANK = (0.03, 0.15)
"""shares of the pure blocks between which the flank is compared"""
_MIN_BLOCKS = 100
_GRID = np.geomspace(0.3, 1000.0, 25)
"""looks at which the flank of pure speckle is drawn"""
_DRAWN_BLOCKS = 12_000
_TOLERATED = 0.2
_CORRELATED = 1.25
"""times the looks of every other pixel that neighbours seem to have where they are correlated"""


@dataclass
class BlockStatistics:
    """Histograms of local statistics over non-overlapping blocks; they add up exactly, strip by strip."""

    cv2: np.ndarray = field(default_factory=lambda: np.zeros(len(_EDGES) - 1, np.int64))
    """of the squared coefficient of variation of intensity"""
    log_variance: np.ndarray = field(default_factory=lambda: np.zeros(len(_EDGES) - 1, np.int64))
    """of the variance of ln I"""
    apart: BlockStatistics | None = None
    """the same of blocks of every other pixel, which correlated neighbours do not smooth; None in itself"""

    def add(self, power: np.ndarray) -> None:
        """Count the blocks of a strip (float32 H x W) that hold only positive, finite pixels.

        Strips of a multiple of 2 BLOCK rows give together what the whole gives.
        """
        self._add(power)
        self.apart = self.apart or BlockStatistics()
        for row in (0, 1):
            for column in (0, 1):
                self.apart._add(power[row::2, column::2])

    def _add(self, power: np.ndarray) -> None:
        rows, cols = power.shape[0] // BLOCK, power.shape[1] // BLOCK
        if rows == 0 or cols == 0:
            return
        cut = power[: rows * BLOCK, : cols * BLOCK].reshape(rows, BLOCK, cols, BLOCK)
        blocks = cut.transpose(0, 2, 1, 3).reshape(-1, BLOCK * BLOCK).astype(np.float64)
        blocks = blocks[np.all((blocks > 0) & (blocks < np.inf), axis=1)]  # NaN > 0 is False
        if len(blocks):
            cv2, log_variance = _statistics(blocks)
            self.cv2 += np.histogram(np.clip(cv2, _EDGES[0], _EDGES[-1]), _EDGES)[0]
            self.log_variance += np.histogram(np.clip(log_variance, _EDGES[0], _EDGES[-1]), _EDGES)[0]


@dataclass(frozen=True)
class Enl:
    """Equivalent number of looks by two estimators, and how far to trust it."""

    looks: float
    by_cv: float
    """from the coefficient of variation of intensity"""
    by_log_variance: float
    """from the variance of ln I (log-cumulants)"""
    disagreement: float
    """of the two, as a share (0.1 = 10 per cent): filtered, resampled, 8-bit and clipped data make it large"""
    confidence: float
    """0 to 1: falls with the disagreement (half at 20 per cent) and where there are few blocks (half at 1,000)"""


def estimate_enl(statistics: BlockStatistics) -> Enl | None:
    """ENL without supervision, as the geometric mean of two estimators. None where fewer than 100 blocks were whole.

    1 / Ci^2 (Oliver & Quegan, 2004, ch. 4) and psi1^-1(Var ln I) (log-cumulants: Nicolas, 2002), each of the blocks
    that hold speckle alone, found by the left flank; a plane is taken off every block. Where neighbouring pixels are
    correlated (oversampled or resampled images) they vary less within a block, and too many looks are found: blocks of
    every other pixel then say clearly fewer, and are believed. Ground that is nowhere flat reads as fewer looks.
    """
    near = _estimate(statistics)
    apart = None if statistics.apart is None else _estimate(statistics.apart)
    correlated = near is not None and apart is not None and near.looks > _CORRELATED * apart.looks
    return apart if correlated else near


def _estimate(statistics: BlockStatistics) -> Enl | None:
    count = int(statistics.cv2.sum())
    if count < _MIN_BLOCKS:
        return None
    cv_flank, log_flank = _flanks_of_speckle()
    by_cv = _looks_by_flank(statistics.cv2, cv_flank, 1.0 / _GRID)
    by_log_variance = _looks_by_flank(statistics.log_variance, log_flank, np.asarray(polygamma(1, _GRID)))
    looks = float(np.sqrt(by_cv * by_log_variance))
    disagreement = abs(by_cv - by_log_variance) / looks
    confidence = count / (count + 1000.0) / (1.0 + (disagreement / _TOLERATED) ** 2)
    return Enl(looks, by_cv, by_log_variance, disagreement, confidence)


def _statistics(blocks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Squared coefficient of variation, and variance of the logarithm, of blocks (N, BLOCK^2) less a plane each."""
    return _variance(blocks) / blocks.mean(axis=1) ** 2, _variance(np.log(blocks))


def _variance(values: np.ndarray) -> np.ndarray:
    centred = values - values.mean(axis=1, keepdims=True)
    return np.maximum(np.sum(centred**2, axis=1) - np.sum((centred @ _SLOPES) ** 2, axis=1), 0.0) / _FREEDOM


@lru_cache(maxsize=1)
def _flanks_of_speckle() -> tuple[np.ndarray, np.ndarray]:
    """For each of the looks of the grid, where the two shares of the flank lie relative to the true value: (25, 2) for
    each statistic. Drawn, with a fixed seed: their distributions have no closed form."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for looks in _GRID:
        rng = np.random.default_rng(1981)
        blocks = rng.standard_gamma(looks, (_DRAWN_BLOCKS, BLOCK * BLOCK)) + np.finfo(np.float64).tiny
        for values, true, flank in zip(
            _statistics(blocks), (1.0 / looks, float(polygamma(1, looks))), found, strict=True
        ):
            flank.append(np.quantile(values, _FLANK) / true)
    return np.array(found[0]), np.array(found[1])


def _looks_by_flank(counts: np.ndarray, flanks: np.ndarray, expected: np.ndarray) -> float:
    """The most looks at which the flank of the histogram is no steeper than that of speckle alone.

    flanks: (25, 2) as of `_flanks_of_speckle`; expected: true value of the statistic at the looks of the grid.
    """
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    fine = np.geomspace(_GRID[0], _GRID[-1], 2000)
    true = np.exp(np.interp(np.log(fine), np.log(_GRID), np.log(expected)))
    low, high = (np.interp(np.log(fine), np.log(_GRID), flanks[:, side]) for side in (0, 1))
    below, above = (np.interp(np.log(true * side), np.log(_EDGES), cumulative) for side in (low, high))
    # from many looks to few: from the empty left of the histogram into its flank
    enough = below >= max(20.0, 0.002 * cumulative[-1])
    steep = above * _FLANK[0] <= below * _FLANK[1]
    fits = np.flatnonzero(enough & steep)
    return float(fine[fits[-1]]) if len(fits) else float(fine[0])
