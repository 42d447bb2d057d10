"""The equivalent number of looks (ENL) of a scene, without supervision.

Small blocks of a scene hold slopes, edges, texture and targets as well as speckle, and so vary more than speckle does;
those that hold one ground alone vary least. How steeply the left flank of the histogram of a local statistic rises
tells where speckle alone lies, whatever share of the blocks is pure: the flank of pure blocks has a known shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.special import polygamma

from sarsense.compiled import njit
from sarsense.histogram import bins_between, count
from sarsense.speckle.flanks import FLANKS_OF_CV, FLANKS_OF_LOG, LOOKS

BLOCK = 7
"""side of the square blocks, in pixels, in which local statistics are taken"""

_EDGES = np.geomspace(1e-6, 50.0, 2401)
"""of the bins of both statistics"""
_BINS = bins_between(_EDGES)
BLOCK_BINS = _BINS.number
_PIXELS = float(BLOCK * BLOCK)
_FREEDOM = _PIXELS - 3.0
_OFFSETS = float(BLOCK * (BLOCK * (BLOCK**2 - 1) // 12))
"""sum over a block of the squares of the offsets from its middle, along one axis"""
_SMALLEST = 1e-30
""""nothing" for a histogram of positive numbers"""
_FLANK = (0.03, 0.15)
"""shares of the pure blocks between which the flank is compared"""
_MIN_BLOCKS = 100
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

    def add(self, power: np.ndarray, log: np.ndarray | None = None) -> None:
        """Count the blocks of a strip (float32 H x W) that hold only positive, finite pixels. log: ln of the power.

        Strips of a multiple of STRIP rows give together what the whole gives.
        """
        power = np.ascontiguousarray(power, np.float32)
        if log is None:
            with np.errstate(divide="ignore", invalid="ignore"):
                log = np.log(power)
        self.apart = self.apart or _none_apart()
        sums = np.empty((6, power.shape[1]))
        for spacing, statistics in enumerate((self, *self.apart), 1):
            rows, cols = power.shape[0] // (spacing * BLOCK), power.shape[1] // (spacing * BLOCK)
            found = np.empty((2, rows * cols * spacing**2), np.float32)
            number = _statistics(power, log, spacing, sums, found)
            for values, histogram in zip(found[:, :number], (statistics.cv2, statistics.log_variance), strict=True):
                count(values, _BINS, histogram)

    def counts(self) -> list[np.ndarray]:
        """All histograms, in one order."""
        return [counts for one in (self, *(self.apart or _none_apart())) for counts in (one.cv2, one.log_variance)]

    @classmethod
    def of(cls, counts: list[np.ndarray]) -> BlockStatistics:
        """What has these `counts`."""
        first, *apart = (cls(*pair) for pair in zip(counts[::2], counts[1::2], strict=True))
        return cls(first.cv2, first.log_variance, tuple(apart))


def _none_apart() -> tuple[BlockStatistics, ...]:
    return BlockStatistics(), BlockStatistics()


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
    by_cv = _looks_by_flank(statistics.cv2, FLANKS_OF_CV, 1.0 / LOOKS)
    by_log_variance = _looks_by_flank(statistics.log_variance, FLANKS_OF_LOG, np.asarray(polygamma(1, LOOKS)))
    looks = float(np.sqrt(by_cv * by_log_variance))
    disagreement = abs(by_cv - by_log_variance) / looks
    confidence = count / (count + 1000.0) / (1.0 + (disagreement / _TOLERATED) ** 2)
    return Enl(looks, by_cv, by_log_variance, disagreement, confidence)


@njit
def _statistics(power: np.ndarray, log: np.ndarray, spacing: int, sums: np.ndarray, found: np.ndarray) -> int:
    """Squared coefficient of variation, and variance of the logarithm, of the blocks of every `spacing`-th pixel, each
    less a plane: into `found`, float32 (2, N); their number. Blocks with a pixel that is no positive, finite number are
    left out. sums: float64 (6, columns), scratch.

    First down each column, then across the columns of a block: most of the work is done on whole rows.
    """
    rows, cols = power.shape[0] // (spacing * BLOCK), power.shape[1] // (spacing * BLOCK)
    number = 0
    for top in range(rows):
        for phase in range(spacing):
            first = top * spacing * BLOCK + phase
            _down(power, first, spacing, sums[0], sums[1], sums[2])
            _down(log, first, spacing, sums[3], sums[4], sums[5])
            for left in range(cols):
                for x in range(left * spacing * BLOCK, left * spacing * BLOCK + spacing):
                    mean = _across(sums[0], x, spacing) / _PIXELS
                    square = _across(sums[1], x, spacing)
                    square_of_log = _across(sums[4], x, spacing)
                    if math.isfinite(square) and math.isfinite(square_of_log):  # a log of 0 is infinite
                        variance = square - _PIXELS * mean * mean - _of_plane(sums[0], sums[2], x, spacing)
                        mean_log = _across(sums[3], x, spacing) / _PIXELS
                        log_variance = square_of_log - _PIXELS * mean_log * mean_log
                        log_variance -= _of_plane(sums[3], sums[5], x, spacing)
                        found[0, number] = np.float32(max(variance / (_FREEDOM * mean * mean), _SMALLEST))
                        found[1, number] = np.float32(max(log_variance / _FREEDOM, _SMALLEST))
                        number += 1
    return number


@njit
def _down(
    source: np.ndarray, first: int, spacing: int, total: np.ndarray, squares: np.ndarray, slope: np.ndarray
) -> None:
    """Of BLOCK rows from `first` on, `spacing` apart, column by column: sum, sum of squares, and sum weighted by the
    offset from the middle row. Written out, since BLOCK is 7: compiled code then works on several columns at once."""
    a, b, c, d = source[first], source[first + spacing], source[first + 2 * spacing], source[first + 3 * spacing]
    e, f, g = source[first + 4 * spacing], source[first + 5 * spacing], source[first + 6 * spacing]
    for x in range(len(total)):
        r, s, t, u = np.float64(a[x]), np.float64(b[x]), np.float64(c[x]), np.float64(d[x])
        v, w, z = np.float64(e[x]), np.float64(f[x]), np.float64(g[x])
        total[x] = r + s + t + u + v + w + z
        squares[x] = r * r + s * s + t * t + u * u + v * v + w * w + z * z
        slope[x] = 3.0 * (z - r) + 2.0 * (w - s) + (v - t)


@njit
def _across(sums: np.ndarray, x: int, spacing: int) -> float:
    """The sum of BLOCK columns from `x` on, `spacing` apart."""
    near = sums[x] + sums[x + spacing] + sums[x + 2 * spacing]
    return near + sums[x + 3 * spacing] + sums[x + 4 * spacing] + sums[x + 5 * spacing] + sums[x + 6 * spacing]


@njit
def _of_plane(total: np.ndarray, slope: np.ndarray, x: int, spacing: int) -> float:
    """The sum of squares that a plane through a block takes up; `total` and `slope` of `_down`."""
    along_rows = _across(slope, x, spacing)
    along_columns = 3.0 * (total[x + 6 * spacing] - total[x]) + 2.0 * (total[x + 5 * spacing] - total[x + spacing])
    along_columns += total[x + 4 * spacing] - total[x + 2 * spacing]
    return (along_rows * along_rows + along_columns * along_columns) / _OFFSETS


def draw_flanks() -> tuple[np.ndarray, np.ndarray]:
    """What `sarsense.speckle.flanks` holds, drawn anew, with a fixed seed: half a second."""
    found: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for looks in LOOKS:
        rng = np.random.default_rng(1981)
        power = rng.standard_gamma(looks, (_DRAWN_BLOCKS * BLOCK, BLOCK)) + np.finfo(np.float64).tiny
        drawn = np.empty((2, _DRAWN_BLOCKS), np.float32)
        _statistics(power, np.log(power), 1, np.empty((6, BLOCK)), drawn)
        for values, true, flank in zip(drawn, (1.0 / looks, float(polygamma(1, looks))), found, strict=True):
            flank.append(np.quantile(values, _FLANK) / true)
    return np.array(found[0]), np.array(found[1])


def _looks_by_flank(counts: np.ndarray, flanks: np.ndarray, expected: np.ndarray) -> float:
    """The most looks at which the flank of the histogram is no steeper than that of speckle alone.

    flanks: (25, 2), of `sarsense.speckle.flanks`; expected: true value of the statistic at the looks of the grid.
    """
    cumulative = np.concatenate([[0], np.cumsum(counts)])
    fine = np.geomspace(LOOKS[0], LOOKS[-1], 2000)
    true = np.exp(np.interp(np.log(fine), np.log(LOOKS), np.log(expected)))
    low, high = (np.interp(np.log(fine), np.log(LOOKS), flanks[:, side]) for side in (0, 1))
    below, above = (np.interp(np.log(true * side), np.log(_EDGES), cumulative) for side in (low, high))
    # from many looks to few: from the empty left of the histogram into its flank
    enough = below >= max(20.0, 0.002 * cumulative[-1])
    steep = above * _FLANK[0] <= below * _FLANK[1]
    fits = np.flatnonzero(enough & steep)
    return float(fine[fits[-1]]) if len(fits) else float(fine[0])
