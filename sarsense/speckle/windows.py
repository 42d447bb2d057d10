"""Local moments in sliding windows, compiled: what the speckle filters of this package stand on.

Sums are formed anew for every window, in float64 and in a fixed order, instead of being carried along: a pixel's
result depends on its window alone, so that a scene filtered in strips equals the scene filtered whole, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sarsense.compiled import njit
from sarsense.errors import SettingError

_ROWS, _COLUMNS = 32, 512
"""of a block: a row of sums stays in the first cache, a block in the second"""


def check_filter(power: np.ndarray, size: int) -> None:
    """SettingError where `power` is no image (2-D, real floating), or `size` no odd side of a window, 3 to 33."""
    if power.ndim != 2 or power.dtype.kind != "f":
        raise SettingError(f"speckle filter: real power H x W expected, {power.dtype} of shape {power.shape} found")
    if size % 2 == 0 or not 3 <= size <= 33:
        raise SettingError(f"speckle filter: odd side of the window from 3 to 33 pixels expected, {size} found")


def padded(power: np.ndarray, radius: int) -> np.ndarray:
    """float32, with `radius` mirrored pixels on all sides (d c b a | a b c d)."""
    return np.pad(power.astype(np.float32, copy=False), radius, mode="symmetric")


def window_of(size: int) -> tuple[int, ...]:
    """What says the side of a window to compiled code: the length of a tuple is known when it is compiled."""
    return (0,) * size


def moments(power: np.ndarray, size: int) -> Iterator[tuple[tuple[slice, slice], np.ndarray, np.ndarray]]:
    """Block by block of an image: where it lies, local mean and local unbiased variance (float64).

    Masked pixels (NaN, infinite) weigh nothing; where a window holds no valid pixel both are 0. Buffers are used anew.
    """
    height, width = power.shape
    source, window = padded(power, size // 2), window_of(size)
    buffers = np.empty((2, _ROWS * min(_COLUMNS, width)))
    for top in range(0, height, _ROWS):
        for left in range(0, width, _COLUMNS):
            rows, columns = min(_ROWS, height - top), min(_COLUMNS, width - left)
            # contiguous, as compiled code is told by their type
            mean, variance = (buffer[: rows * columns].reshape(rows, columns) for buffer in buffers)
            _block_moments(source, top, left, window, mean, variance)
            yield (slice(top, top + rows), slice(left, left + columns)), mean, variance


@njit
def _block_moments(
    source: np.ndarray, top: int, left: int, window: tuple[int, ...], mean: np.ndarray, variance: np.ndarray
) -> None:
    """Fill mean and variance, float64 (rows, columns), of the windows whose first pixels begin at (top, left)."""
    rows, columns = mean.shape
    width = columns + len(window) - 1
    total, squares, valid, number = np.empty(width), np.empty(width), np.empty(width), np.empty(columns)
    for row in range(rows):
        first = top + row
        column_sums(source, first, first + len(window), left, total, squares, valid)
        row_moments(total, squares, valid, window, number, mean[row], variance[row])


@njit
def mmse(x: float, mean: float, variance: float, noise: float) -> float:
    """Minimum mean square error of a pixel x (Kuan's weight) with relative speckle variance `noise`; NaN where x is
    NaN or infinite."""
    weight = (1.0 - noise * mean * mean / variance) / (1.0 + noise) if variance > 0.0 else 0.0
    return mean + max(weight, 0.0) * (x - mean) + (x - x)


@njit
def column_sums(
    source: np.ndarray, first: int, last: int, left: int, total: np.ndarray, squares: np.ndarray, valid: np.ndarray
) -> None:
    """Sum, sum of squares and number of the valid values of the columns from `left` on, over rows first to last - 1."""
    total[:] = 0.0
    squares[:] = 0.0
    valid[:] = 0.0
    for row in range(first, last):
        line = source[row, left : left + len(total)]
        for x in range(len(total)):
            value = np.float64(line[x])
            known = value - value == 0.0  # neither NaN nor infinite
            value = value if known else 0.0
            total[x] += value
            squares[x] += value * value
            valid[x] += 1.0 if known else 0.0


@njit
def row_moments(
    total: np.ndarray,
    squares: np.ndarray,
    valid: np.ndarray,
    window: tuple[int, ...],
    number: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
) -> None:
    """Mean and unbiased variance of windows of len(window) columns, from their column sums. `number`: scratch."""
    for x in range(len(mean)):
        first, second = 0.0, 0.0
        for dx in range(len(window)):
            first += total[x + dx]
            second += squares[x + dx]
        mean[x] = first
        variance[x] = second
    for x in range(len(mean)):
        count = 0.0
        for dx in range(len(window)):
            count += valid[x + dx]
        number[x] = count
    for x in range(len(mean)):
        n = max(number[x], 1.0)
        average = mean[x] / n
        spread = (variance[x] - average * mean[x]) / max(n - 1.0, 1.0)
        mean[x] = average
        variance[x] = max(spread, 0.0)
