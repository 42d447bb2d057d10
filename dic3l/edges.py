"""Where a tile has contours: points on edges that speckle does not explain, matched in both views.

The detector is the ratio of averages (Touzi, Lopes and Bousquet, "A statistical and geometrical edge detector for SAR
images", IEEE TGRS 26(6), 1988): the means of power in two windows on both sides of a possible edge, whose ratio has a
distribution that does not depend on the level, so that bright speckle is no edge where a gradient would see one. Of
speckle of L looks, the logarithm of a mean over n pixels has the variance psi_1(n L) (Gamma of shape n L), so the
strength of an edge is told in standard deviations of what speckle alone would make: |ln(a / b)| / sqrt(2 psi_1(n L)).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from scipy.special import polygamma

from dic3l.boxes import boxes_in_view
from dic3l.config import EdgeConfig
from dic3l.views import ViewParams

CELL = 4
"""tile pixels a side of the cells that windows are made of"""
_WINDOW = 2
"""cells a side of a window"""
_BLOCK = 4
"""cells a side of the blocks of which each gives its strongest edge"""
_GOLDEN = 0.6180339887498949
"""steps of this share of the circle fill it evenly (Weyl)"""
DRAWS = 1
"""uniform numbers that the points of a pair of views need"""


def edge_strength(codes: np.ndarray, step_db: float, looks: float) -> np.ndarray:
    """Strength of the edges at the corners of cells, in standard deviations of speckle.

    codes: uint8 (H, W), 0 = no data; step_db: dB a code; looks: of the tile, NaN = unknown, which counts as one.
    Returns float32 (H // 4 + 1, W // 4 + 1): entry (i, j) lies at tile pixel (4 j, 4 i), edges of pixels. 0 where a
    window would leave the tile or meet no data.
    """
    rows, columns = codes.shape[0] // CELL, codes.shape[1] // CELL
    strength = np.zeros((rows + 1, columns + 1), np.float32)
    if min(rows, columns) < 2 * _WINDOW:
        return strength
    codes = codes[: rows * CELL, : columns * CELL]
    table = (10.0 ** (step_db / 10.0 * (np.arange(256) - 128.0))).astype(np.float32)
    table[0] = 0.0
    power = cv2.resize(cv2.LUT(codes, table), (columns, rows), interpolation=cv2.INTER_AREA)
    # mean power of the window whose first cell is (i, j)
    mean = (power[:-1, :-1] + power[1:, :-1] + power[:-1, 1:] + power[1:, 1:]) / 4
    level = np.log(np.maximum(mean, np.finfo(np.float32).tiny))
    level[_without_data(codes, rows, columns)] = np.nan
    shift, inner = _WINDOW, slice(_WINDOW, -_WINDOW)
    up, down, left, right = level[:-shift], level[shift:], level[:, :-shift], level[:, shift:]
    found = np.zeros((rows + 1, columns + 1), np.float32)
    for difference, place in (
        (right - left, (slice(1, -1), inner)),  # windows side by side: the edge between them runs up
        (down - up, (inner, slice(1, -1))),
        (down[:, shift:] - up[:, :-shift], (inner, inner)),  # and those that touch at a corner
        (down[:, :-shift] - up[:, shift:], (inner, inner)),
    ):
        np.fmax(found[place], np.abs(difference), out=found[place])
    pixels = (_WINDOW * CELL) ** 2
    looks = looks if math.isfinite(looks) else 1.0
    strength[...] = found / math.sqrt(2 * float(polygamma(1, pixels * looks)))
    return strength


def _without_data(codes: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """bool (rows - 1, columns - 1): windows that hold a pixel of code 0."""
    if codes.min() > 0:
        return np.zeros((rows - 1, columns - 1), bool)
    empty = (codes == 0).reshape(rows, CELL, columns, CELL).any(axis=(1, 3))
    return empty[:-1, :-1] | empty[1:, :-1] | empty[:-1, 1:] | empty[1:, 1:]


def strongest(strength: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The strongest edge of each block of 16 x 16 pixels: points float64 (M, 2), x and y in tile pixels; strength (M,).

    So a long bright edge gives points along all of it, and not all the points of a tile.
    """
    rows, columns = (side // _BLOCK for side in strength.shape)
    blocks = strength[: rows * _BLOCK, : columns * _BLOCK].reshape(rows, _BLOCK, columns, _BLOCK)
    blocks = blocks.transpose(0, 2, 1, 3).reshape(rows, columns, _BLOCK * _BLOCK)
    place = blocks.argmax(axis=2)
    y = np.arange(rows)[:, None] * _BLOCK + place // _BLOCK
    x = np.arange(columns)[None] * _BLOCK + place % _BLOCK
    points = np.stack((x, y), axis=-1).reshape(-1, 2) * float(CELL)
    return points, blocks.max(axis=2).reshape(-1)


def edge_squares(
    strength: np.ndarray, u: float, rects: tuple[np.ndarray, np.ndarray], crop_size: int, config: EdgeConfig
) -> np.ndarray:
    """Squares about edge points in the overlap of two views: float64 (q, 4) in tile pixels, q <= config.count.

    strength: of `edge_strength`; u: a uniform number in [0, 1); rects: float64 (4,), of both views on the tile. Points
    are drawn without replacement, the more probably the stronger (Efraimidis and Spirakis, 2006): other points in
    other epochs.
    """
    first, second = rects
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    half = config.side / 2 * np.maximum(first[2:] - first[:2], second[2:] - second[:2]) / crop_size
    points, weight = strongest(strength)
    fits = np.all((points - half >= low) & (points + half <= high), axis=1) & (weight >= config.significance)
    numbers = np.flatnonzero(fits)
    draws = np.maximum((u + numbers * _GOLDEN) % 1.0, 2.0**-33)
    order = np.argsort(np.log(draws) / weight[numbers], kind="stable")[::-1][: config.count]
    chosen = points[numbers[order]]
    return np.concatenate((chosen - half, chosen + half), axis=1)


def squares_in_views(
    squares: list[np.ndarray], first: ViewParams, second: ViewParams, crop_size: int, config: EdgeConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squares of N tiles, (q, 4) each in tile pixels -> in both views, float32 (N, Q, 4), and their mask, bool (N, Q).

    Where a tile has none, the first is the whole view, masked: the queue takes what it covers.
    """
    placed = np.zeros((len(squares), config.count, 4))
    for row, found in zip(placed, squares, strict=True):
        row[: len(found)] = found
    mask = np.arange(config.count) < np.array([len(found) for found in squares])[:, None]
    views = []
    for params in (first, second):
        inside = boxes_in_view(placed, mask, params, crop_size)
        inside[~mask[:, 0], 0] = 0, 0, crop_size, crop_size
        views.append(inside)
    return views[0], views[1], mask


def whole_views(count: int, crop_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The published contour branch: one square an image, which is all of it."""
    whole = np.tile(np.array([0, 0, crop_size, crop_size], np.float32), (count, 1, 1))
    return whole, whole, np.ones((count, 1), bool)
