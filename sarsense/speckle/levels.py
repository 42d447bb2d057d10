"""The histogram of despeckled levels: of the mean power of the window about each pixel, as a scene is read row by row.

Means of neighbouring windows differ little, so every second row is enough. Sums are of float32 in a fixed order, formed
anew for every window: the counts depend on the scene alone, not on the pieces it is read in.
"""

from __future__ import annotations

import numpy as np

from sarsense.compiled import njit
from sarsense.histogram import BINS, CELL, LEVELS
from sarsense.speckle.filters import SIZE

HALO = SIZE // 2
EVERY = 2
"""rows from one whose levels are counted to the next"""
_LANES = 4
"""histograms that take turns: counting into one bin again and again waits for memory"""


class LevelHistogram:
    """Counts the levels of a scene of at least `SIZE` rows. Power is handed over where it lies: `room` says where to
    write it, `add` that it is there, `counts` ends the scene. Borders are mirrored; masked pixels (NaN) weigh nothing
    in their neighbours' windows, and are not counted."""

    def __init__(self, rows: int, width: int, above: np.ndarray | None = None) -> None:
        """rows: that are added at a time, at most; above: of a part of a scene that begins at an even row of it, the
        `HALO` rows of power before."""
        # the last rows of what came before, the new ones, and in the end mirrored ones
        self._lines = np.zeros((2 * HALO + max(rows, HALO), width), np.float32)
        self._sums = np.zeros((2, width + 2 * HALO), np.float32)
        self._mean = np.zeros(width, np.float32)
        self._counts = np.zeros((_LANES, BINS), np.int64)
        self._seen = 0
        self._masked = above is not None and bool(np.isnan(above).any())
        self._above = above

    def room(self, rows: int) -> np.ndarray:
        """float32 (rows, width), for the next rows of power."""
        return self._lines[2 * HALO : 2 * HALO + rows]

    def add(self, rows: int, masked: bool) -> None:
        """Count the levels that the rows in `room` make known. masked: some of their pixels are NaN."""
        lines = self._lines
        if self._seen == 0:
            lines[HALO : 2 * HALO] = lines[2 * HALO : 3 * HALO][::-1] if self._above is None else self._above
        self._count(0 if self._seen == 0 else self._seen - HALO, self._seen + rows - HALO, masked or self._masked)
        lines[: 2 * HALO] = lines[rows : rows + 2 * HALO].copy()
        self._seen += rows
        self._masked = masked

    def counts(self, below: np.ndarray | None = None) -> np.ndarray:
        """int64 (`BINS`,): of the scene, or the part of it, whose last row was added. below: the `HALO` rows of power
        after."""
        self._lines[2 * HALO : 3 * HALO] = self._lines[HALO : 2 * HALO][::-1] if below is None else below
        masked = self._masked or (below is not None and bool(np.isnan(below).any()))
        self._count(self._seen - HALO, self._seen, masked)
        return self._counts.sum(axis=0)

    def _count(self, first: int, last: int, masked: bool) -> None:
        """Levels of rows first..last (exclusive) of the scene, of which the row number `_seen` is line 2 HALO."""
        first += first % EVERY
        start, stop = (row - self._seen + 2 * HALO for row in (first, last))
        counted = _count_masked if masked else _count_whole
        counted(self._lines, start, stop, self._sums, self._mean, LEVELS.first, LEVELS.next_from, self._counts)


@njit
def _count_whole(
    lines: np.ndarray,
    start: int,
    stop: int,
    sums: np.ndarray,
    mean: np.ndarray,
    bins: np.ndarray,
    next_from: np.ndarray,
    counts: np.ndarray,
) -> None:
    """Count the means about every second line from `start` on; no pixel is masked."""
    total, share = sums[0], np.float32(1 / SIZE**2)
    for line in range(start, stop, EVERY):
        _column_sums(lines, line, total)
        for x in range(len(mean)):
            mean[x] = share * (
                total[x] + total[x + 1] + total[x + 2] + total[x + 3] + total[x + 4] + total[x + 5] + total[x + 6]
            )
        _into_lanes(mean.view(np.uint32), bins, next_from, counts)


@njit
def _count_masked(
    lines: np.ndarray,
    start: int,
    stop: int,
    sums: np.ndarray,
    mean: np.ndarray,
    bins: np.ndarray,
    next_from: np.ndarray,
    counts: np.ndarray,
) -> None:
    """The same, where some are."""
    total, number = sums[0], sums[1]
    width = len(mean)
    for line in range(start, stop, EVERY):
        total[:] = 0.0
        number[:] = 0.0
        for row in range(line - HALO, line + HALO + 1):
            source = lines[row]
            for x in range(width):
                value = source[x]
                known = value == value
                total[HALO + x] += value if known else np.float32(0.0)
                number[HALO + x] += np.float32(1.0) if known else np.float32(0.0)
        _mirror(total)
        _mirror(number)
        centre, valid = lines[line], 0
        for x in range(width):
            level, seen = np.float32(0.0), np.float32(0.0)
            for k in range(SIZE):
                level += total[x + k]
                seen += number[x + k]
            if centre[x] == centre[x]:
                mean[valid] = level / seen
                valid += 1
        _into_lanes(mean[:valid].view(np.uint32), bins, next_from, counts)


@njit
def _column_sums(lines: np.ndarray, line: int, total: np.ndarray) -> None:
    """Sums over the `SIZE` lines about `line`, mirrored at both ends. Written out: `SIZE` is 7."""
    a, b, c, d = lines[line - 3], lines[line - 2], lines[line - 1], lines[line]
    e, f, g = lines[line + 1], lines[line + 2], lines[line + 3]
    for x in range(len(d)):
        total[HALO + x] = a[x] + b[x] + c[x] + d[x] + e[x] + f[x] + g[x]
    _mirror(total)


@njit
def _mirror(sums: np.ndarray) -> None:
    """Mirror the first and the last columns into the `HALO` beside them."""
    end = len(sums) - HALO
    for k in range(HALO):
        sums[HALO - 1 - k] = sums[HALO + k]
        sums[end + k] = sums[end - 1 - k]


@njit
def _into_lanes(bits: np.ndarray, bins: np.ndarray, next_from: np.ndarray, counts: np.ndarray) -> None:
    """Count positive float32, given as their bits, into the histograms in turn."""
    a, b, c, d = counts[0], counts[1], counts[2], counts[3]
    whole = len(bits) - len(bits) % _LANES
    for x in range(0, whole, _LANES):
        cell = bits[x] >> np.uint32(CELL)
        a[bins[cell] + (bits[x] >= next_from[cell])] += 1
        cell = bits[x + 1] >> np.uint32(CELL)
        b[bins[cell] + (bits[x + 1] >= next_from[cell])] += 1
        cell = bits[x + 2] >> np.uint32(CELL)
        c[bins[cell] + (bits[x + 2] >= next_from[cell])] += 1
        cell = bits[x + 3] >> np.uint32(CELL)
        d[bins[cell] + (bits[x + 3] >= next_from[cell])] += 1
    for x in range(whole, len(bits)):
        cell = bits[x] >> np.uint32(CELL)
        a[bins[cell] + (bits[x] >= next_from[cell])] += 1
