"""What a tile looks like once its speckle is averaged away: a thumbnail of 4 KiB, hashes, and how much ground it shows.

The mean amplitude of a block of n pixels keeps C_A(L) / sqrt(n) of its speckle (`statistics.amplitude_cv`): at one look
a quarter less than the mean of their decibels, and less moved by single targets than that of their power. Tiles whose
ground varies more than this can be told from others; open sea does not, and is said to be `flat`. Hashes are signs of
cosine coefficients (the perceptual hash of Zauner, 2010), without the mean, so that a gain changes nothing: one of the
whole tile, and one of a window about each of up to 16 extrema of a difference of Gaussians (Lowe, 2004, IJCV 60), which
lie on the same ground wherever a tile was cut. Knows nothing of turned or flipped copies, nor of scaled ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np

from sarsense.compiled import njit
from sarsense.errors import SettingError

ANCHORS = 16
"""anchors of a tile at most"""
THUMBNAIL_SIDE = 64
"""pixels of a thumbnail along the longer side of a tile, at most"""
MIN_BLOCK = 2
"""side of the blocks that are averaged, at least. With 4, chips of 112 pixels show their target alone (60 % of copies
found, with 2: 96 %)"""
WINDOW = 24
"""thumbnail pixels along the window of an anchor: 192 pixels of a tile of 512. Smaller ones lose hashes to speckle
(half of the contrast of farmland, one look: 93 % of tiles found with 24, 85 % with 20), larger ones leave no room for
anchors"""
ANCHOR_BITS = 48
"""of the hash of a window: with 64, the same tiles are found at 42 %; with 40, chance finds 150 times as many"""
FLAT_RATIO = 4.0
"""variance of the ground in a thumbnail over that of the speckle left in it, below which a tile is flat"""
FLAT_DB = 0.25
"""standard deviation of the ground, dB, below which a tile is flat whatever its looks"""

_MISSING = -1
_SMOOTH, _FINE, _COARSE = 1.5, 2.0, 3.2
"""Gaussian smoothing of thumbnails and of the two that are subtracted to find anchors, thumbnail pixels"""
_MIN_VALID = 0.25
"""of a tile: with less, it is flat and has no anchors"""
_MAX_MISSING = 0.15
"""of the window of an anchor"""


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a tile to find others that show the same ground."""

    perceptual_hash: int
    """64 bits, of the whole tile"""
    structure: float
    """standard deviation of the despeckled ground beyond what speckle leaves in it, dB"""
    flat: bool
    """whether the tile shows too little ground to be told from others"""
    anchors: np.ndarray
    """uint64 (ANCHORS,): hashes of windows, ANCHOR_BITS bits, strongest first; 0 where there is none"""
    positions: np.ndarray
    """int16 (ANCHORS, 2): row and column of the middle of each window, pixels of the tile; -1 where there is none"""
    thumbnail: np.ndarray
    """uint8 (h, w): despeckled dB about the mean, which is 128, in steps of the tile's own; 0 is no data"""


def block_side(shape: tuple[int, ...]) -> int:
    """Pixels of a tile along one of its thumbnail; rows and columns that fill no block are left out."""
    return max(MIN_BLOCK, -(-max(shape) // THUMBNAIL_SIDE))


def fingerprint(codes: np.ndarray, step_db: float) -> Fingerprint:
    """The fingerprint of a tile. codes: uint8 or uint16 (H, W), 0 no data, else equal steps of `step_db` dB.

    Speckle is measured in the tile, not taken from its looks: where pixels are correlated (oversampled, warped), more
    of it is left in a block mean than the looks would say. Where the step is not known (display images), any step
    gives the same hashes and thumbnail; only FLAT_DB depends on it. Raises SettingError.
    """
    block = block_side(codes.shape)
    if codes.ndim != 2 or codes.dtype.kind != "u" or min(codes.shape) < 8 * block:
        raise SettingError(
            f"fingerprint: unsigned codes H x W of {8 * MIN_BLOCK} pixels or more, no side over 8 times the other, "
            f"expected; {codes.dtype} of shape {codes.shape} found"
        )
    height, width = codes.shape[0] // block, codes.shape[1] // block
    mean, valid = np.empty((height, width), np.float32), np.empty((height, width), np.float32)
    table = _amplitudes(1 << (8 * codes.dtype.itemsize), step_db)
    if codes.min() > 0:
        _block_means_of_whole(codes, table, block, mean)
        valid[:] = 1
        whole = True
    else:
        share = _block_means(codes, table, block, mean, valid)
        if share < _MIN_VALID:
            return _blank(height, width)
        whole = share == 1.0
    level = mean.mean() if whole else mean[valid > 0].mean()
    mean -= level
    if not whole:
        mean *= valid
    noise = _left_of_speckle(mean, valid, whole)
    smooth = _blurred(mean, valid, whole)
    ground = smooth if whole else smooth[valid > 0]
    left = _gain(_SMOOTH) * noise**2
    variance = max(float(ground.var()) - left, 0.0)
    anchors, positions = np.zeros(ANCHORS, np.uint64), np.full((ANCHORS, 2), -1, np.int16)
    if min(height, width) > WINDOW:
        _anchor(smooth, valid, whole, block, anchors, positions)
    return Fingerprint(
        perceptual_hash=int(_whole_hash(smooth)),
        structure=math.sqrt(variance),
        flat=variance < max(FLAT_RATIO * left, FLAT_DB**2),
        anchors=anchors,
        positions=positions,
        thumbnail=_thumbnail(smooth, valid, whole),
    )


def _blank(height: int, width: int) -> Fingerprint:
    anchors, positions = np.zeros(ANCHORS, np.uint64), np.full((ANCHORS, 2), -1, np.int16)
    return Fingerprint(0, 0.0, True, anchors, positions, np.zeros((height, width), np.uint8))


# ----------------------------------------------------------------------------------------------- thumbnail


@lru_cache(maxsize=8)
def _amplitudes(codes: int, step_db: float) -> np.ndarray:
    """float32 (codes,): amplitude of each code, that of code 1 being 1; 0 of code 0."""
    table = 10.0 ** (np.arange(-1, codes - 1) * (step_db / 20.0))
    table[0] = 0.0
    return table.astype(np.float32)


@njit
def _block_means(codes: np.ndarray, table: np.ndarray, block: int, mean: np.ndarray, valid: np.ndarray) -> float:
    """Mean of table[code] of each block, in dB of its square (0 where less than half is valid), and 1 or 0 for valid;
    returns the share of valid blocks."""
    kept = 0
    sums, counts = np.empty(mean.shape[1] * block, np.float32), np.empty(mean.shape[1] * block, np.int32)
    for i in range(mean.shape[0]):
        _column_sums(codes, i * block, block, table, sums)
        counts[:] = 0
        for row in range(i * block, (i + 1) * block):
            line = codes[row, : len(sums)]
            for column in range(len(sums)):
                counts[column] += np.int32(line[column] != 0)
        for j in range(mean.shape[1]):
            total, count = 0.0, 0
            for column in range(j * block, (j + 1) * block):
                total += sums[column]
                count += counts[column]
            enough = 2 * count >= block * block
            mean[i, j] = np.float32(20 * math.log10(total / count)) if enough else np.float32(0)
            valid[i, j] = np.float32(1) if enough else np.float32(0)
            kept += enough
    return kept / mean.size


@njit
def _block_means_of_whole(codes: np.ndarray, table: np.ndarray, block: int, mean: np.ndarray) -> None:
    """The same means, where every pixel is valid."""
    sums = np.empty(mean.shape[1] * block, np.float32)
    for i in range(mean.shape[0]):
        _column_sums(codes, i * block, block, table, sums)
        for j in range(mean.shape[1]):
            total = 0.0
            for column in range(j * block, (j + 1) * block):
                total += sums[column]
            mean[i, j] = np.float32(20 * math.log10(total / (block * block)))


@njit
def _column_sums(codes: np.ndarray, first: int, rows: int, table: np.ndarray, sums: np.ndarray) -> None:
    """Sums of table[code] down the columns, over `rows` rows from `first` on; two at a time."""
    sums[:] = 0
    for row in range(first, first + rows - 1, 2):
        a, b = codes[row], codes[row + 1]
        for column in range(len(sums)):
            sums[column] += table[a[column]] + table[b[column]]
    if rows % 2:
        line = codes[first + rows - 1]
        for column in range(len(sums)):
            sums[column] += table[line[column]]


def _left_of_speckle(mean: np.ndarray, valid: np.ndarray, whole: bool) -> float:
    """Standard deviation of what varies from block to block without regard to its neighbours, dB.

    Differences of diagonal neighbours cancel slopes and straight edges; their median, what else stands out.
    """
    checker = mean[:-1, :-1] - mean[:-1, 1:] - mean[1:, :-1] + mean[1:, 1:]
    if not whole:
        inside = (valid[:-1, :-1] * valid[:-1, 1:] * valid[1:, :-1] * valid[1:, 1:]) > 0
        checker = checker[inside]
        if checker.size == 0:
            return math.inf
    size = np.abs(checker).ravel()
    middle = len(size) // 2
    return float(np.partition(size, middle)[middle]) / (2 * 0.67449)


def _blurred(mean: np.ndarray, valid: np.ndarray, whole: bool) -> np.ndarray:
    smooth = np.asarray(cv2.GaussianBlur(mean, (0, 0), _SMOOTH, borderType=cv2.BORDER_REFLECT))
    if whole:
        return smooth
    weight = np.asarray(cv2.GaussianBlur(valid, (0, 0), _SMOOTH, borderType=cv2.BORDER_REFLECT))
    return smooth / np.maximum(weight, np.float32(1e-3)) * valid


@lru_cache
def _gain(sigma: float) -> float:
    """Variance that a Gaussian blur leaves of white noise of variance 1."""
    kernel = cv2.getGaussianKernel(2 * round(4 * sigma) + 1, sigma)
    return float((kernel**2).sum() ** 2)


def _thumbnail(smooth: np.ndarray, valid: np.ndarray, whole: bool) -> np.ndarray:
    extent = max(float(smooth.max()), -float(smooth.min()), 1e-6)
    codes = np.rint(smooth * np.float32(127 / extent)).astype(np.int16) + 128
    return (codes if whole else np.where(valid > 0, codes, 0)).astype(np.uint8)


# -------------------------------------------------------------------------------------------------- hashes


def _frequencies() -> np.ndarray:
    """int64 (64, 2): the lowest frequencies, in half cycles a window, of which one is odd at least.

    Where both are even, a coefficient about an extremum says little but that it is one: such bits are alike in all
    hashes (of 1,000 anchors, up to 97 in 100), and would crowd the tables of a search.
    """
    both = [(u, v) for u in range(10) for v in range(10) if u % 2 or v % 2]
    return np.array(sorted(both, key=lambda uv: (uv[0] ** 2 + uv[1] ** 2, uv))[:64])


_FREQUENCIES = _frequencies()


@lru_cache
def _cosines(side: int) -> np.ndarray:
    """float32 (10, side)."""
    return np.cos(np.pi * np.arange(10)[:, None] * (np.arange(side) + 0.5) / side).astype(np.float32)


def _whole_hash(smooth: np.ndarray) -> np.uint64:
    height, width = smooth.shape
    return _signs(_cosines(height) @ smooth @ _cosines(width).T, _FREQUENCIES)


@njit
def _signs(coefficients: np.ndarray, frequencies: np.ndarray) -> np.uint64:
    bits = np.uint64(0)
    for number in range(len(frequencies)):
        if coefficients[frequencies[number, 0], frequencies[number, 1]] > 0:
            bits |= np.uint64(1) << np.uint64(number)
    return bits


def _anchor(
    smooth: np.ndarray, valid: np.ndarray, whole: bool, block: int, anchors: np.ndarray, positions: np.ndarray
) -> None:
    fine, coarse = (
        np.asarray(cv2.GaussianBlur(smooth, (0, 0), math.sqrt(s * s - _SMOOTH**2), borderType=cv2.BORDER_REFLECT))
        for s in (_FINE, _COARSE)
    )
    known = valid if whole else np.asarray(cv2.blur(valid, (WINDOW, WINDOW), borderType=cv2.BORDER_CONSTANT))
    _hash_extrema(
        smooth,
        fine - coarse,
        known,
        block,
        WINDOW,
        _cosines(WINDOW),
        _FREQUENCIES[:ANCHOR_BITS],
        1 - _MAX_MISSING,
        anchors,
        positions,
    )


@njit
def _hash_extrema(
    smooth: np.ndarray,
    blobs: np.ndarray,
    known: np.ndarray,
    block: int,
    window: int,
    cosines: np.ndarray,
    frequencies: np.ndarray,
    least_known: float,
    anchors: np.ndarray,
    positions: np.ndarray,
) -> None:
    """Fill `anchors` and `positions` from the strongest extrema of `blobs` about which a window lies in the tile."""
    height, width = smooth.shape
    margin = window // 2
    where = np.empty((height * width, 2), np.int64)
    strength = np.empty(height * width, np.float32)
    count = 0
    for y in range(margin, height - margin):
        for x in range(margin, width - margin):
            value = blobs[y, x]
            sign = np.float32(1) if value > 0 else np.float32(-1)
            peak = abs(value)
            largest = np.float32(-1)
            for dy in range(-1, 2):
                for dx in range(-1, 2):
                    if dy != 0 or dx != 0:
                        largest = max(largest, sign * blobs[y + dy, x + dx])
            if peak > largest and known[y, x] >= least_known:
                where[count, 0], where[count, 1], strength[count] = y, x, peak
                count += 1
    order = np.argsort(-strength[:count])
    patch = np.empty((window, window), np.float32)
    rows = np.empty((10, window), np.float32)
    coefficients = np.empty((10, 10), np.float32)
    for rank in range(min(count, len(anchors))):
        y, x = where[order[rank]]
        top = y + vertex(blobs[y - 1, x], blobs[y, x], blobs[y + 1, x])
        left = x + vertex(blobs[y, x - 1], blobs[y, x], blobs[y, x + 1])
        _cut(smooth, top - (window - 1) / 2, left - (window - 1) / 2, patch)
        for u in range(10):
            for k in range(window):
                total = np.float32(0)
                for i in range(window):
                    total += cosines[u, i] * patch[i, k]
                rows[u, k] = total
        for u in range(10):
            for v in range(10):
                total = np.float32(0)
                for k in range(window):
                    total += rows[u, k] * cosines[v, k]
                coefficients[u, v] = total
        anchors[rank] = _signs(coefficients, frequencies)
        positions[rank, 0] = round((top + 0.5) * block)
        positions[rank, 1] = round((left + 0.5) * block)


@njit
def vertex(before: float, middle: float, after: float) -> float:
    """Where the parabola through three samples about an extremum has its vertex, from the middle one, +-0.5."""
    bend = before + after - 2 * middle
    return min(max(0.5 * (before - after) / bend, -0.5), 0.5) if bend != 0 else 0.0


@njit
def _cut(image: np.ndarray, top: float, left: float, patch: np.ndarray) -> None:
    """Fill `patch` from (top, left) of the image on, between pixels bilinear; the last row and column repeat."""
    y0, x0 = math.floor(top), math.floor(left)
    fy, fx = np.float32(top - y0), np.float32(left - x0)
    height, width = image.shape
    for i in range(patch.shape[0]):
        y, below = min(max(y0 + i, 0), height - 1), min(max(y0 + i + 1, 0), height - 1)
        for k in range(patch.shape[1]):
            x, beside = min(max(x0 + k, 0), width - 1), min(max(x0 + k + 1, 0), width - 1)
            upper = image[y, x] + fx * (image[y, beside] - image[y, x])
            lower = image[below, x] + fx * (image[below, beside] - image[below, x])
            patch[i, k] = upper + fy * (lower - upper)
