"""Dynamic Instances: pairs of boxes that cover the same ground in two views of a tile.

The published sampler, for a whole batch at once: the overlap of the two views is measured at the smaller of their
two scales, divided into a random grid whose cells are at least `min_side`, and a box of random sides is placed at
random inside a random cell. A candidate is kept if it overlaps less than `max_iou` with each box kept before it.
Two things differ from the published code. The IoU is tested in one frame, the tile's (the published code compares
boxes of two frames, so that 11 per cent of the images break the rule). And nothing is rounded to whole pixels: a pair
covers the same ground to the precision of float32.
"""

from __future__ import annotations

import numpy as np

from dic3l.config import BoxConfig
from dic3l.views import ViewParams, view_matrix

_DRAWS_PER_CANDIDATE = 8
"""grid columns and rows, cell column and row, sides, position"""


def box_draws(config: BoxConfig) -> int:
    """Uniform numbers that the boxes of a pair of views need."""
    return _DRAWS_PER_CANDIDATE * config.candidates


def _spans(low: np.ndarray, length: np.ndarray, scale: np.ndarray, u: np.ndarray, min_side: float):
    """Candidate spans along one axis of the tile.

    low, length: the overlap's start and length in tile pixels (N,); scale: view pixels a tile pixel (N,);
    u (4, N, T): uniforms for divisions, cell, side, position. Returns start and end in tile pixels, (N, T) each.
    """
    divisions, cell, side, position = u
    scaled = (length * scale)[:, None]
    most = np.maximum(np.floor(scaled / min_side), 1.0)
    count = np.floor(divisions * most) + 1.0
    cell_side = scaled / count
    sides = min_side + side * np.maximum(cell_side - min_side, 0.0)
    start = np.floor(cell * count) * cell_side + position * (cell_side - sides)
    return low[:, None] + start / scale[:, None], low[:, None] + (start + sides) / scale[:, None]


def _first_fit(candidates: np.ndarray, possible: np.ndarray, count: int, max_iou: float):
    """The first `count` candidates (N, T, 4) of each image that overlap less than `max_iou` with those kept before.

    possible: bool (N,). Returns boxes (N, P, 4), zeros where none, and their mask (N, P); kept boxes come first.
    """
    images, tried, _ = candidates.shape
    areas = (candidates[..., 2] - candidates[..., 0]) * (candidates[..., 3] - candidates[..., 1])
    kept = np.zeros((images, count, 4))
    kept_area = np.zeros((images, count))
    filled = np.zeros(images, np.int64)
    for t in range(tried):
        open_rows = np.flatnonzero(possible & (filled < count))
        if not len(open_rows):
            break
        box, area = candidates[open_rows, t], areas[open_rows, t]
        others = kept[open_rows]
        # an empty place has no area, so that nothing overlaps it
        width = np.minimum(box[:, None, 2], others[..., 2]) - np.maximum(box[:, None, 0], others[..., 0])
        height = np.minimum(box[:, None, 3], others[..., 3]) - np.maximum(box[:, None, 1], others[..., 1])
        inter = np.maximum(width, 0.0) * np.maximum(height, 0.0)
        fits = np.all(inter < max_iou * (area[:, None] + kept_area[open_rows] - inter), axis=1)
        rows = open_rows[fits]
        kept[rows, filled[rows]] = box[fits]
        kept_area[rows, filled[rows]] = area[fits]
        filled[rows] += 1
    return kept, np.arange(count) < filled[:, None]


def _into_view(boxes: np.ndarray, mask: np.ndarray, params: ViewParams, crop_size: int) -> np.ndarray:
    """Boxes (N, P, 4) in tile pixels -> float32 in view pixels, flip applied; zeros where masked."""
    matrix = view_matrix(params, crop_size)[:, None]
    x = boxes[..., 0::2] * matrix[..., 0, 0, None] + matrix[..., 0, 2, None]
    y = boxes[..., 1::2] * matrix[..., 1, 1, None] + matrix[..., 1, 2, None]
    x.sort(axis=-1)  # a flip swaps left and right
    view = np.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), axis=-1)
    return np.where(mask[..., None], np.clip(view, 0.0, crop_size), 0.0).astype(np.float32)


def matched_boxes(
    u: np.ndarray, first: ViewParams, second: ViewParams, crop_size: int, config: BoxConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to P matched boxes of each of N pairs of views of one tile.

    u: uniforms (N, box_draws(config)). Returns the boxes in the first and in the second view, float32 (N, P, 4) as
    x0, y0, x1, y1 in view pixels (edges, within [0, crop_size]), and their mask, bool (N, P). Fewer than P where
    the overlap holds no more, none where it is narrower than `min_side`; kept boxes come first, the others are zero.
    """
    low = np.maximum(first.rect[:, :2], second.rect[:, :2])
    high = np.minimum(first.rect[:, 2:], second.rect[:, 2:])
    length = np.maximum(high - low, 0.0)
    sides = np.maximum(first.rect[:, 2:] - first.rect[:, :2], second.rect[:, 2:] - second.rect[:, :2])
    scale = crop_size / sides  # of the coarser view: min_side there is at least min_side in the other
    possible = np.all(length * scale >= config.min_side, axis=1)
    draws = u.reshape(len(u), config.candidates, 2, 4).transpose(2, 3, 0, 1)
    x0, x1 = _spans(low[:, 0], length[:, 0], scale[:, 0], draws[0], config.min_side)
    y0, y1 = _spans(low[:, 1], length[:, 1], scale[:, 1], draws[1], config.min_side)
    candidates = np.stack((x0, y0, x1, y1), axis=-1)
    kept, mask = _first_fit(candidates, possible, config.count, config.max_iou)
    return _into_view(kept, mask, first, crop_size), _into_view(kept, mask, second, crop_size), mask
