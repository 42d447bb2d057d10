"""The equivalent number of looks (ENL) of a scene, without supervision.

Most small blocks of a scene hold texture, edges or targets as well as speckle, and vary more than speckle does; those
that hold one ground alone pile up at what speckle does. So the mode of a local statistic tells the looks.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import cast

import numpy as np
from scipy.ndimage import gaussian_filter1d
from scipy.optimize import brentq
from scipy.special import polygamma

BLOCK = 7
"""side of the square blocks, in pixels, in which local statistics are taken"""

_CV_EDGES = np.geomspace(0.01, 10.0, 1201)
_LOGVAR_EDGES = np.geomspace(1e-4, 30.0, 1201)
_SMOOTHING_BINS = 8.0
_MIN_BLOCKS = 100


@dataclass
class BlockStatistics:
    """Histograms of local statistics over non-overlapping blocks; they add up exactly, strip by strip."""

    cv: np.ndarray = field(default_factory=lambda: np.zeros(len(_CV_EDGES) - 1, np.int64))
    log_variance: np.ndarray = field(default_factory=lambda: np.zeros(len(_LOGVAR_EDGES) - 1, np.int64))

    def add(self, power: np.ndarray) -> None:
        """Count the blocks of a strip (float32 H x W) that hold only positive, finite pixels."""
        rows, cols = power.shape[0] // BLOCK, power.shape[1] // BLOCK
        if rows == 0 or cols == 0:
            return
        cut = power[: rows * BLOCK, : cols * BLOCK].reshape(rows, BLOCK, cols, BLOCK)
        blocks = cut.transpose(0, 2, 1, 3).reshape(-1, BLOCK * BLOCK).astype(np.float64)
        blocks = blocks[np.all(blocks > 0, axis=1)]  # NaN > 0 is False: invalid pixels drop their block
        if not len(blocks):
            return
        cv = blocks.std(axis=1, ddof=1) / blocks.mean(axis=1)
        log_variance = np.log(blocks).var(axis=1, ddof=1)
        self.cv += np.histogram(cv, _CV_EDGES)[0]
        self.log_variance += np.histogram(log_variance, _LOGVAR_EDGES)[0]


@dataclass(frozen=True)
class Enl:
    """Equivalent number of looks by two estimators, and by how much they disagree (0.1 = 10 per cent)."""

    looks: float
    by_cv: float
    by_log_variance: float
    disagreement: float


def estimate_enl(statistics: BlockStatistics) -> Enl | None:
    """ENL without supervision: most blocks of a scene hold texture, the mode of them holds speckle alone.

    Two estimators: 1 / mode(block CV)^2, and trigamma^-1(mode of the block variance of ln I) (log-cumulants).
    The value is their geometric mean. None where fewer than 100 blocks were whole.
    """
    if statistics.cv.sum() < _MIN_BLOCKS or statistics.log_variance.sum() < _MIN_BLOCKS:
        return None
    by_cv = 1.0 / _mode(statistics.cv, _CV_EDGES) ** 2
    by_log_variance = _inverse_trigamma(_mode(statistics.log_variance, _LOGVAR_EDGES))
    looks = float(np.sqrt(by_cv * by_log_variance))
    return Enl(looks, by_cv, by_log_variance, abs(by_cv - by_log_variance) / looks)


def _mode(counts: np.ndarray, edges: np.ndarray) -> float:
    """Mode of a density over log-spaced bins, smoothed so that single bins do not decide."""
    smooth = gaussian_filter1d(counts.astype(np.float64), _SMOOTHING_BINS, mode="constant")
    centres = np.sqrt(edges[:-1] * edges[1:])
    # counts in log-spaced bins are a density over log(x): divide by x for the density over x
    return float(centres[np.argmax(smooth / centres)])


def _inverse_trigamma(value: float) -> float:
    lowest, highest = 1e-3, 1e6
    value = min(max(value, float(polygamma(1, highest))), float(polygamma(1, lowest)))
    root = brentq(lambda looks: float(polygamma(1, looks)) - value, lowest, highest, full_output=False)
    return float(cast(float, root))
