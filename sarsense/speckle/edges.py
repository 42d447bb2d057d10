"""The refined Lee filter: windows that follow edges."""

from __future__ import annotations

import numpy as np

from sarsense.compiled import njit
from sarsense.speckle.filters import checked_looks
from sarsense.speckle.windows import check_filter, mmse, padded

REFINED_LEE_RADIUS = 3
"""pixels about a pixel that the filter looks at"""
_COLUMNS = 512


def refined_lee(power: np.ndarray, looks: float) -> np.ndarray:
    """Lee (1981), "Refined filtering of image noise using local statistics", Computer Graphics and Image Processing 15.

    power: float32 H x W, NaN where not valid; float32 of the same shape is returned. The window is 7 x 7.

    1. Where the whole window varies no more than speckle (Ci <= Cu), the pixel becomes its mean.
    2. Elsewhere the means of nine 3 x 3 sub-windows (centres 2 pixels apart) give four gradients: right less left, top
       less bottom, and the two diagonals, each of three sub-windows less the three opposite. The largest is the edge.
    3. Of the two sub-windows across the edge the one nearer in mean to the central one tells the pixel's side.
    4. Minimum mean square error over the 28 pixels of that side, the line through the centre included:
       m + w (x - m) with w = (1 - Cu^2 / Ci^2) / (1 + Cu^2), Kuan's weight, as in Lee's own derivation; Cu^2 = 1 / L.

    Variants differ: SNAP takes Cu from the five calmest sub-windows and plain statistics below a threshold of the
    gradient, PyRAT compares ratios of means. Sub-windows without a valid pixel count as equal to the central one.
    """
    check_filter(power, 2 * REFINED_LEE_RADIUS + 1)
    noise = 1.0 / checked_looks(looks)
    source, out = padded(power, REFINED_LEE_RADIUS), np.empty(power.shape, np.float32)
    masked = not bool(np.isfinite(source).all())
    for left in range(0, power.shape[1], _COLUMNS):
        _refined_lee(source, left, min(_COLUMNS, power.shape[1] - left), masked, noise, out)
    return out


@njit
def _column_prefixes(source: np.ndarray, top: int, left: int, prefix: np.ndarray) -> None:
    """prefix: float64 (2, 8, columns): sums of value and square of each column over its first 0..7 rows."""
    for row in range(7):
        line = source[top + row, left : left + prefix.shape[2]]
        before, after = prefix[0, row], prefix[0, row + 1]
        for x in range(len(after)):
            value = np.float64(line[x])
            after[x] = before[x] + (value if value - value == 0.0 else 0.0)
        before, after = prefix[1, row], prefix[1, row + 1]
        for x in range(len(after)):
            value = np.float64(line[x])
            after[x] = before[x] + (value * value if value - value == 0.0 else 0.0)


@njit
def _column_counts(source: np.ndarray, top: int, left: int, prefix: np.ndarray) -> None:
    """prefix: float64 (8, columns): number of the valid pixels of each column over its first 0..7 rows."""
    for row in range(7):
        line = source[top + row, left : left + prefix.shape[1]]
        before, after = prefix[row], prefix[row + 1]
        for x in range(len(after)):
            value = np.float64(line[x])
            after[x] = before[x] + (1.0 if value - value == 0.0 else 0.0)


@njit
def _half_windows(prefix: np.ndarray, sums: np.ndarray) -> None:
    """sums: float64 (9, columns) of one quantity over left, right, top, bottom, the four triangles, and the window.

    prefix: float64 (8, columns + 6): prefix[k] is the sum over the first k rows of the window. One loop an output or
    two: compiled code can only tell a few arrays apart.
    """
    p1, p2, p3, p4, p5, p6, p7 = prefix[1], prefix[2], prefix[3], prefix[4], prefix[5], prefix[6], prefix[7]
    left, right, whole = sums[0], sums[1], sums[8]
    for x in range(len(left)):
        before = p7[x] + p7[x + 1] + p7[x + 2]
        after = p7[x + 4] + p7[x + 5] + p7[x + 6]
        left[x] = before + p7[x + 3]
        right[x] = p7[x + 3] + after
        whole[x] = before + p7[x + 3] + after
    top, bottom = sums[2], sums[3]
    for x in range(len(top)):
        upper, lower = 0.0, 0.0
        for k in range(7):
            upper += p4[x + k]
            lower += p7[x + k] - p3[x + k]
        top[x] = upper
        bottom[x] = lower
    upper_left, upper_right = sums[4], sums[6]
    for x in range(len(upper_left)):
        upper_left[x] = p7[x] + p6[x + 1] + p5[x + 2] + p4[x + 3] + p3[x + 4] + p2[x + 5] + p1[x + 6]
    for x in range(len(upper_right)):
        upper_right[x] = p1[x] + p2[x + 1] + p3[x + 2] + p4[x + 3] + p5[x + 4] + p6[x + 5] + p7[x + 6]
    # what these triangles leave of the window, with the diagonal itself
    lower_right, lower_left = sums[5], sums[7]
    for x in range(len(lower_right)):
        lower_right[x] = whole[x] - (p6[x] + p5[x + 1] + p4[x + 2] + p3[x + 3] + p2[x + 4] + p1[x + 5])
    for x in range(len(lower_left)):
        lower_left[x] = whole[x] - (p1[x + 1] + p2[x + 2] + p3[x + 3] + p4[x + 4] + p5[x + 5] + p6[x + 6])


@njit
def _sub_windows(prefix: np.ndarray, sums: np.ndarray) -> None:
    """sums: float64 (9, columns) of one quantity over the 3 x 3 sub-windows, row by row."""
    for i in range(3):
        upper, lower = prefix[2 * i], prefix[2 * i + 3]
        for j in range(3):
            out = sums[3 * i + j]
            for x in range(len(out)):
                y = x + 2 * j
                out[x] = lower[y] - upper[y] + lower[y + 1] - upper[y + 1] + lower[y + 2] - upper[y + 2]


@njit
def _to_means(sums: np.ndarray, counts: np.ndarray) -> None:
    """Divide the sums of sub-windows by their counts; where one is empty, the central one stands for it."""
    for number in range(9):
        total, count = sums[number], counts[number]
        for x in range(len(total)):
            total[x] = total[x] / count[x]
    centre = sums[4]
    for number in range(9):
        mean = sums[number]
        for x in range(len(mean)):
            mean[x] = mean[x] if mean[x] == mean[x] else centre[x]


@njit
def _excess(total: np.ndarray, squares: np.ndarray, count: np.ndarray, noise: float, out: np.ndarray) -> None:
    """(n - 1) (v - Cu^2 m^2) of whole windows: above 0 where they vary more than speckle."""
    for x in range(len(out)):
        mean = total[x] / count[x]
        out[x] = squares[x] - mean * total[x] - (count[x] - 1.0) * noise * mean * mean


@njit
def _choose(means: np.ndarray, excess: np.ndarray, sides: np.ndarray) -> None:
    """The half window of each pixel, 0 to 7; 8, the whole window, where that varies no more than speckle.

    Selections in place of branches: on speckle no processor guesses them.
    """
    m0, m1, m2, m3, m4 = means[0], means[1], means[2], means[3], means[4]
    m5, m6, m7, m8 = means[5], means[6], means[7], means[8]
    for x in range(len(sides)):
        a, b, c, d, centre, f, g, h, i = m0[x], m1[x], m2[x], m3[x], m4[x], m5[x], m6[x], m7[x], m8[x]
        largest = abs((c + f + i) - (a + d + g))
        side = 0 if abs(d - centre) <= abs(f - centre) else 1
        gradient = abs((a + b + c) - (g + h + i))
        vertical = 2 if abs(b - centre) <= abs(h - centre) else 3
        side = vertical if gradient > largest else side
        largest = max(largest, gradient)
        gradient = abs((a + b + d) - (f + h + i))
        diagonal = 4 if abs(a - centre) <= abs(i - centre) else 5
        side = diagonal if gradient > largest else side
        largest = max(largest, gradient)
        gradient = abs((b + c + f) - (d + g + h))
        diagonal = 6 if abs(c - centre) <= abs(g - centre) else 7
        side = diagonal if gradient > largest else side
        sides[x] = side if excess[x] > 0.0 else 8


@njit
def _estimate(
    line: np.ndarray,
    sums: np.ndarray,
    squares: np.ndarray,
    counts: np.ndarray,
    sides: np.ndarray,
    noise: float,
    out: np.ndarray,
) -> None:
    """Minimum mean square error of each pixel of `line` over its window; the mean where the weight is not above 0."""
    for x in range(len(out)):
        side, centre = sides[x], np.float64(line[x])
        n, total = counts[side, x], sums[side, x]
        mean = total / n
        variance = (squares[side, x] - mean * total) / max(n - 1.0, 1.0)
        out[x] = np.float32(mmse(centre, mean, variance, noise))


@njit
def _refined_lee(source: np.ndarray, left: int, columns: int, masked: bool, noise: float, out: np.ndarray) -> None:
    """Fill `columns` columns of `out` from `left` on. Whole arrays: compiled code is told that they are contiguous."""
    prefix, counted = np.zeros((2, 8, columns + 6)), np.zeros((8, columns + 6))
    sums, squares, counts = np.empty((9, columns)), np.empty((9, columns)), np.full((9, columns), 28.0)
    means, sub_counts = np.empty((9, columns)), np.full((9, columns), 9.0)
    counts[8] = 49.0
    sides, excess = np.empty(columns, np.int64), np.empty(columns)
    for row in range(out.shape[0]):
        _column_prefixes(source, row, left, prefix)
        _half_windows(prefix[0], sums)
        _half_windows(prefix[1], squares)
        _sub_windows(prefix[0], means)
        if masked:
            _column_counts(source, row, left, counted)
            _half_windows(counted, counts)
            _sub_windows(counted, sub_counts)
        _to_means(means, sub_counts)
        _excess(sums[8], squares[8], counts[8], noise, excess)
        _choose(means, excess, sides)
        _estimate(
            source[row + 3, left + 3 : left + 3 + columns],
            sums,
            squares,
            counts,
            sides,
            noise,
            out[row, left : left + columns],
        )
