"""The improved Lee sigma filter: mean of the pixels that may be of the same ground, point targets kept."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import cv2
import numpy as np
from scipy.optimize import brentq
from scipy.special import gammainc, gammaincinv

from sarsense.speckle.filters import checked_looks, kuan
from sarsense.speckle.windows import check_filter, mmse, njit, padded, window_of

SIGMA_SIZE = 9
_BRIGHT_PERCENT = 98.0
_BRIGHT_PIXELS = 5
_COLUMNS = 512


@lru_cache(maxsize=256)
def sigma_range(looks: float, sigma: float) -> tuple[float, float, float]:
    """(I1, I2, Cu'): where speckle of unit mean lies with probability `sigma` such that its mean there is 1 too.

    Cu' is its standard deviation there. Lee et al. (2009), whose table has 0.084, 3.941 and 0.8191 for one look and
    sigma 0.9.
    """

    def upper(low: float) -> float:
        below = float(gammainc(looks, looks * low))
        return float(gammaincinv(looks, min(below + sigma, 1.0 - 1e-15))) / looks

    def excess(low: float) -> float:
        high = upper(low)
        return float(gammainc(looks + 1, looks * high) - gammainc(looks + 1, looks * low)) - sigma

    # the mean of the range grows with its lower end; at the last start that leaves room for sigma it is above 1
    last = float(gammaincinv(looks, 1.0 - sigma)) / looks
    low = float(cast(float, brentq(excess, 0.0, last * (1.0 - 1e-12), xtol=1e-14)))
    high = upper(low)
    second = (1.0 + 1.0 / looks) * float(gammainc(looks + 2, looks * high) - gammainc(looks + 2, looks * low))
    return low, high, float(np.sqrt(second / sigma - 1.0))


def lee_sigma(
    power: np.ndarray, looks: float, size: int = SIGMA_SIZE, sigma: float = 0.9, bright: float | None = None
) -> np.ndarray:
    """Lee, Wen, Ainsworth, Chen & Chen (2009), "Improved sigma filter for speckle filtering of SAR imagery", TGRS 47.

    power: float32 H x W, NaN where not valid; float32 of the same shape is returned.

    1. Point targets stay as they are: pixels of at least `bright` (default: the 98th percentile of the valid pixels;
       give it where an image is filtered in parts) of which a 3 x 3 window holds five or more.
    2. The a-priori mean is the minimum mean square error of the 3 x 3 window.
    3. The pixels of the size x size window between I1 and I2 times that mean (`sigma_range`) give mean and variance.
    4. Minimum mean square error of these, with the speckle that the range leaves: Cu' in place of Cu.
    """
    check_filter(power, size)
    low, high, spread = sigma_range(checked_looks(looks), sigma)
    power = power.astype(np.float32, copy=False)
    prior = kuan(power, looks, 3)
    source, out = padded(power, size // 2), np.empty(power.shape, np.float32)
    for left in range(0, power.shape[1], _COLUMNS):
        columns = min(_COLUMNS, power.shape[1] - left)
        _lee_sigma(source, prior, left, columns, low, high, spread * spread, window_of(size), out)
    kept = _point_targets(power, bright)
    out[kept] = power[kept]
    return out


def _point_targets(power: np.ndarray, bright: float | None) -> np.ndarray:
    """bool H x W."""
    if bright is None:
        valid = power[np.isfinite(power)]
        bright = float(np.percentile(valid, _BRIGHT_PERCENT)) if len(valid) else np.inf
    shines = (np.isfinite(power) & (power >= bright)).astype(np.uint8)
    count = cv2.boxFilter(shines, -1, (3, 3), normalize=False, borderType=cv2.BORDER_CONSTANT)
    seeds = ((count >= _BRIGHT_PIXELS) & (shines == 1)).astype(np.uint8)
    return np.asarray(cv2.dilate(seeds, np.ones((3, 3), np.uint8))).astype(bool) & shines.astype(bool)


@njit
def _lee_sigma(
    source: np.ndarray,
    prior: np.ndarray,
    left: int,
    columns: int,
    low: float,
    high: float,
    noise: float,
    window: tuple[int, ...],
    out: np.ndarray,
) -> None:
    radius = len(window) // 2
    first, second, count = np.empty(columns), np.empty(columns), np.empty(columns)
    for row in range(out.shape[0]):
        mean_before = prior[row, left : left + columns]
        first[:] = 0.0
        second[:] = 0.0
        count[:] = 0.0
        for dy in range(len(window)):
            for dx in range(len(window)):
                _add_in_range(
                    source[row + dy, left + dx : left + dx + columns], mean_before, low, high, first, second, count
                )
        line = source[row + radius, left + radius : left + radius + columns]
        _finish(line, mean_before, first, second, count, noise, out[row, left : left + columns])


@njit
def _add_in_range(
    line: np.ndarray,
    prior: np.ndarray,
    low: float,
    high: float,
    first: np.ndarray,
    second: np.ndarray,
    count: np.ndarray,
) -> None:
    """Add the values of `line` between low and high times `prior`; NaN compares false."""
    for x in range(len(first)):
        value, middle = np.float64(line[x]), np.float64(prior[x])
        taken = (value >= low * middle) & (value <= high * middle)
        value = value if taken else 0.0
        first[x] += value
        second[x] += value * value
        count[x] += 1.0 if taken else 0.0


@njit
def _finish(
    line: np.ndarray,
    prior: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    count: np.ndarray,
    noise: float,
    out: np.ndarray,
) -> None:
    for x in range(len(out)):
        centre = np.float64(line[x])
        n = max(count[x], 1.0)
        mean = first[x] / n if count[x] > 0.0 else np.float64(prior[x])
        variance = (second[x] - mean * first[x]) / max(n - 1.0, 1.0)
        out[x] = np.float32(mmse(centre, mean, variance, noise))
