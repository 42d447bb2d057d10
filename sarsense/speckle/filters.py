"""Speckle filters on intensity that need no more than the mean and the variance of a window.

All take power, float32 H x W, NaN where not valid, and return float32 of the same shape. Masked pixels stay masked
(NaN) and weigh nothing in their neighbours' windows; borders are mirrored. Notation: x the pixel, m the mean
of its window and v its unbiased variance (n - 1), Ci^2 = v / m^2, Cu^2 = 1 / L for L looks.

Never filter dB, amplitude or warped images with these: their speckle is not what the formulas say.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sarsense.compiled import elementwise, njit
from sarsense.errors import SettingError
from sarsense.speckle.windows import check_filter, mmse, moments, padded

SIZE = 7
"""side of the window of all filters, in pixels, unless said otherwise"""


def boxcar(power: np.ndarray, size: int = SIZE) -> np.ndarray:
    """Mean of the valid pixels of a size x size window: spatial multilooking. Needs no number of looks."""
    check_filter(power, size)
    return _filtered(power, size, _boxcar)


def lee(power: np.ndarray, looks: float, size: int = SIZE) -> np.ndarray:
    """Lee (1980), "Digital image enhancement and noise filtering by use of local statistics", IEEE TPAMI 2(2).

    m + w (x - m) with w = 1 - Cu^2 / Ci^2, cut to 0 .. 1. This is the variant of Orfeo ToolBox; Lee's own minimum mean
    square error for multiplicative noise, w = (1 - Cu^2 / Ci^2) / (1 + Cu^2), is `kuan` (SNAP calls that one Lee).
    """
    check_filter(power, size)
    return _filtered(power, size, _lee, 1.0 / checked_looks(looks))


def kuan(power: np.ndarray, looks: float, size: int = SIZE) -> np.ndarray:
    """Kuan et al. (1985), "Adaptive noise smoothing filter for images with signal-dependent noise", IEEE TPAMI 7(2).

    m + w (x - m) with w = (1 - Cu^2 / Ci^2) / (1 + Cu^2), cut to 0 .. 1: the linear minimum mean square error.
    """
    check_filter(power, size)
    return _filtered(power, size, _kuan, 1.0 / checked_looks(looks))


def gamma_map(power: np.ndarray, looks: float, size: int = SIZE) -> np.ndarray:
    """Gamma-MAP: Lopes et al. (1993), "Structure detection and statistical adaptive speckle filtering in SAR images",
    International Journal of Remote Sensing 14(9): the most probable reflectivity, if that is gamma distributed.

    m where Ci <= Cu; x where Ci >= Cmax = sqrt(2) Cu (Orfeo ToolBox and SNAP; some texts say sqrt(1 + 2 / L)); between,
    with a = (1 + Cu^2) / (Ci^2 - Cu^2) and b = a - L - 1, (b m + sqrt(m^2 b^2 + 4 a L m x)) / (2 a).
    """
    check_filter(power, size)
    return _filtered(power, size, _gamma_map, checked_looks(looks))


def frost(power: np.ndarray, looks: float | None = None, size: int = SIZE, damping: float = 2.0) -> np.ndarray:
    """Frost et al. (1982), "A model for radar images and its application to adaptive digital filtering of
    multiplicative noise", IEEE TPAMI 4(2).

    Mean with weights exp(-damping Ci^2 d), d the distance in pixels from the centre, as in Orfeo ToolBox (others have
    Ci in place of its square). `looks` is not used: it is there so that all filters are called alike.
    """
    check_filter(power, size)
    radius = size // 2
    rings = np.hypot(*np.mgrid[-radius : radius + 1, -radius : radius + 1])
    distances, ring = np.unique(rings.round(9), return_inverse=True)
    source, out = padded(power, radius), np.empty(power.shape, np.float32)
    for (rows, columns), mean, variance in moments(power, size):
        block = source[rows.start : rows.stop + 2 * radius, columns.start : columns.stop + 2 * radius]
        _frost(block, mean, variance, damping, distances, ring.reshape(size, size), out[rows, columns])
    return out


# ------------------------------------------------- for one pixel; x - x makes NaN of what is NaN or infinite


@elementwise
def _boxcar(x: Any, mean: Any, variance: Any) -> Any:
    return np.float32(mean + (x - x))


@elementwise
def _lee(x: Any, mean: Any, variance: Any, noise: Any) -> Any:
    weight = 1.0 - noise * mean * mean / variance if variance > 0.0 else 0.0
    return np.float32(mean + max(weight, 0.0) * (x - mean) + (x - x))


@elementwise
def _kuan(x: Any, mean: Any, variance: Any, noise: Any) -> Any:
    return np.float32(mmse(np.float64(x), mean, variance, noise))


@elementwise
def _gamma_map(x: Any, mean: Any, variance: Any, looks: Any) -> Any:
    if x - x != 0.0 or mean <= 0.0:
        return np.float32(x + (x - x))
    noise, local = 1.0 / looks, variance / (mean * mean)
    if local <= noise:
        return np.float32(mean)
    if local >= 2.0 * noise:
        return np.float32(x)
    alpha = (1.0 + noise) / (local - noise)
    b = alpha - looks - 1.0
    root = math.sqrt(mean * mean * b * b + 4.0 * alpha * looks * mean * x)
    return np.float32((b * mean + root) / (2.0 * alpha))


@njit
def _frost(
    block: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    damping: float,
    distances: np.ndarray,
    ring: np.ndarray,
    out: np.ndarray,
) -> None:
    size, rings = len(ring), len(distances)
    radius = size // 2
    sums, counts = np.empty(rings), np.empty(rings)
    for row in range(mean.shape[0]):
        for column in range(mean.shape[1]):
            centre = block[row + radius, column + radius]
            if centre - centre != 0.0:
                out[row, column] = np.nan
                continue
            sums[:] = 0.0
            counts[:] = 0.0
            for dy in range(size):
                for dx in range(size):
                    value = np.float64(block[row + dy, column + dx])
                    if value - value == 0.0:
                        sums[ring[dy, dx]] += value
                        counts[ring[dy, dx]] += 1.0
            m = mean[row, column]
            local = variance[row, column] / (m * m) if m > 0.0 else 0.0
            total, weights = 0.0, 0.0
            for number in range(rings):
                weight = math.exp(-damping * local * distances[number])
                total += weight * sums[number]
                weights += weight * counts[number]
            out[row, column] = np.float32(total / weights)


# ------------------------------------------------------------------------------------------------------- all


def _filtered(power: np.ndarray, size: int, formula: Any, *parameters: float) -> np.ndarray:
    power, out = power.astype(np.float32, copy=False), np.empty(power.shape, np.float32)
    with np.errstate(invalid="ignore", divide="ignore"):  # masked pixels, constants
        for where, mean, variance in moments(power, size):
            formula(power[where], mean, variance, *parameters, out=out[where])
    return out


def checked_looks(looks: float) -> float:
    if not (math.isfinite(looks) and looks > 0):
        raise SettingError(f"speckle filter: a number of looks above 0 expected, {looks!r} found")
    return float(looks)
