"""The equivalent number of looks (ENL) of a scene, without supervision.

Small blocks of a scene hold slopes, edges, texture and targets as well as speckle, and so vary more than speckle does;
those that hold one ground alone vary least. How steeply the left flank of the histogram of a local statistic rises
tells where speckle alone lies, whatever share of the blocks is pure: the flank of pure blocks has a known shape.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numba import njit
from scipy.special import polygamma

BLOCK = 7
"""side of the square blocks, in pixels, in which local statistics are taken"""

_EDGES = np.geomspace(1e-6, 50.0, 2401)
"""of the bins of both statistics"""
_FREEDOM = BLOCK * BLOCK - 3
_FLANK = (0.03, 0.15)
"""shares of the pure blocks between which the flank is compared"""
_MIN_BLOCKS = 100
_GRID = np.geomspace(0.3, 1000.0, 25)
"""looks at which the flank of pure speckle is drawn"""
_DRAWN_BLOCKS = 12_000
_TOLERATED = 0.2
STRIP = 6 * BLOCK
"""rows of a strip: a multiple of this, so that blocks of every second and every third pixel are whole"""
_CORRELATED, _SURELY = 1.25, 1.7
"""neighbours are correlated where they seem to have so many times the looks of every second pixel and variance levels
off, or surely so where they seem to have even more"""


@dataclass
class BlockStatistics:
    """Histograms of local statistics over non-overlapping blocks; they add up exactly, strip by strip."""

    cv2: np.ndarray = field(default_factory=lambda: np.zeros(len(_EDGES) - 1, np.int64))
    """of the squared coefficient of variation of intensity"""
    log_variance: np.ndarray = field(default_factory=lambda: np.zeros(len(_EDGES) - 1, np.int64))
    """of the variance of ln I"""
    apart: tuple[BlockStatistics, ...] = ()
    """the same of blocks of every second, and of every third pixel, which correlated neighbours do not smooth; none in
    themselves"""

    def add(self, power: np.ndarray) -> None:
        """Count the blocks of a strip (float32 H x W) that hold only positive, finite pixels.

        Strips of a multiple of STRIP rows give together what the whole gives.
        """
        power = np.ascontiguousarray(power, np.float32)
        with np.errstate(divide="ignore", invalid="ignore"):
            log = np.log(power)
        self.apart = self.apart or (BlockStatistics(), BlockStatistics())
        for spacing, statistics in enumerate((self, *self.apart), 1):
            rows, cols = power.shape[0] // (spacing * BLOCK), power.shape[1] // (spacing * BLOCK)
            found = np.empty((2, rows * cols * spacing**2))
            count = _statistics(power, log, spacing, found)
            for values, histogram in zip(found[:, :count], (statistics.cv2, statistics.log_variance), strict=True):
                histogram += np.histogram(np.clip(values, _EDGES[0], _EDGES[-1]), _EDGES)[0]


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
    every second pixel then say clearly fewer, those of every third hardly fewer still, and the second are believed.
    Of ground that is nowhere flat, wider blocks vary more and more, as the square of their side: what it adds to the
    smallest is taken off.
    """
    found = [_estimate(one) for one in (statistics, *statistics.apart)]
    near, *apart = found
    if near is None or len(apart) < 2 or apart[0] is None or apart[1] is None:
        return near
    first, second = 1 / apart[0].looks - 1 / near.looks, 1 / apart[1].looks - 1 / apart[0].looks
    times = near.looks / apart[0].looks
    if times > _SURELY or (times > _CORRELATED and second < first):
        return apart[0]
    if second < first or first <= 0:
        return near
    # the ground's share grows with the square of the side: three times what it is in the small blocks comes on top
    less = 1 / (1 - near.looks * first / 3)
    return replace(near, looks=less * near.looks, by_cv=less * near.by_cv, by_log_variance=less * near.by_log_variance)


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


@njit(cache=True, nogil=True)
def _statistics(power: np.ndarray, log: np.ndarray, spacing: int, found: np.ndarray) -> int:
    """Squared coefficient of variation, and variance of the logarithm, of the blocks of every `spacing`-th pixel, each
    less a plane: into `found` (2, N); their number. Blocks with a pixel that is no positive, finite number are left
    out."""
    rows, cols = power.shape[0] // (spacing * BLOCK), power.shape[1] // (spacing * BLOCK)
    side = spacing * BLOCK
    # of offsets from the middle, along one axis: the sum of their squares over a block
    norm = BLOCK * (BLOCK * (BLOCK**2 - 1) // 12)
    count = 0
    for top in range(rows):
        for left in range(cols):
            for lattice in range(spacing * spacing):
                first_row, first_col = top * side + lattice // spacing, left * side + lattice % spacing
                # differences to the first pixel: small numbers lose nothing
                power_0, log_0 = np.float64(power[first_row, first_col]), np.float64(log[first_row, first_col])
                p = p2 = p_row = p_col = q = q2 = q_row = q_col = 0.0
                whole = True
                for i in range(BLOCK):
                    for j in range(BLOCK):
                        value = np.float64(power[first_row + i * spacing, first_col + j * spacing])
                        whole &= (value > 0.0) & (value < np.inf)
                        d = value - power_0
                        e = np.float64(log[first_row + i * spacing, first_col + j * spacing]) - log_0
                        p += d
                        p2 += d * d
                        p_row += d * (i - BLOCK // 2)
                        p_col += d * (j - BLOCK // 2)
                        q += e
                        q2 += e * e
                        q_row += e * (i - BLOCK // 2)
                        q_col += e * (j - BLOCK // 2)
                if whole:
                    n = BLOCK * BLOCK
                    variance = p2 - p * p / n - (p_row * p_row + p_col * p_col) / norm
                    log_variance = q2 - q * q / n - (q_row * q_row + q_col * q_col) / norm
                    found[0, count] = max(variance, 0.0) / _FREEDOM / (power_0 + p / n) ** 2
                    found[1, count] = max(log_variance, 0.0) / _FREEDOM
                    count += 1
    return count


@lru_cache(maxsize=1)
def _flanks_of_speckle() -> tuple[np.ndarray, np.ndarray]:
    """For each of the looks of the grid, where the two shares of the flank lie relative to the true value: (25, 2) for
    each statistic. Drawn, with a fixed seed: their distributions have no closed form."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for looks in _GRID:
        rng = np.random.default_rng(1981)
        power = rng.standard_gamma(looks, (_DRAWN_BLOCKS * BLOCK, BLOCK)) + np.finfo(np.float64).tiny
        drawn = np.empty((2, _DRAWN_BLOCKS))
        _statistics(power, np.log(power), 1, drawn)
        for values, true, flank in zip(drawn, (1.0 / looks, float(polygamma(1, looks))), found, strict=True):
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
