"""Dynamic Instances: pairs of boxes that cover the same ground in two views of a tile.

The published sampler, for a whole batch at once: the overlap of the two views is measured at the smaller of their
two scales, divided into a random grid whose cells are at least `min_side`, and a box of random sides is placed at
random inside a random cell. A candidate is kept if it overlaps less than `max_iou` with each box kept before it.
Two things differ from the published code. The IoU is tested in one frame, the tile's (the published code compares
boxes of two frames, so that 11 per cent of the images break the rule). And nothing is rounded to whole pixels: a pair
covers the same ground to the precision of float32.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dic3l.config import BoxConfig
from dic3l.views import ViewParams, view_matrix

_DRAWS_PER_CANDIDATE = 8
"""grid columns and rows, cell column and row, sides, position"""
_FIRST_ROUND = 20
"""candidates that every image draws; most find their boxes among them"""
_MORE = 5
"""times the candidates in the next round, for the images that lack boxes"""

Draws = Callable[[np.ndarray, int, int], np.ndarray]
"""(rows, start, stop) -> uniforms (len(rows), stop - start) in [0, 1): columns start .. stop of some images' numbers"""


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


def _area(box: np.ndarray) -> np.ndarray:
    return (box[2] - box[0]) * (box[3] - box[1])


def _apart(boxes: np.ndarray, box: np.ndarray, max_iou: float) -> np.ndarray:
    """Whether boxes (4, N, T) overlap less than `max_iou` with the one box of their image, (4, N): bool (N, T)."""
    box = box[:, :, None]
    width = np.minimum(boxes[2], box[2]) - np.maximum(boxes[0], box[0])
    height = np.minimum(boxes[3], box[3]) - np.maximum(boxes[1], box[1])
    inter = np.maximum(width, 0.0) * np.maximum(height, 0.0)
    return inter * (1 + max_iou) < max_iou * (_area(boxes) + _area(box))


def _first_fit(tried: np.ndarray, kept: np.ndarray, filled: np.ndarray, max_iou: float) -> None:
    """Add to the boxes of each image, in order, the candidates that overlap less than `max_iou` with all before them.

    tried: (4, N, T); kept: (4, N, P), of which the first `filled` (N,) are there; both are changed. The loop is over
    the boxes that are kept, each of which rules out the candidates that overlap it: not over those that are tried.
    """
    count = kept.shape[2]
    fits = np.ones(tried.shape[1:], bool)
    for place in range(int(filled.max(initial=0))):
        fits &= _apart(tried, kept[:, :, place], max_iou) | (filled <= place)[:, None]
    rows = np.arange(len(filled))
    for _ in range(count):
        first = fits.argmax(axis=1)
        more = rows[fits[rows, first] & (filled < count)]
        if not len(more):
            return
        box = tried[:, more, first[more]]
        kept[:, more, filled[more]] = box
        filled[more] += 1
        fits[more] &= _apart(tried[:, more], box, max_iou)


def boxes_in_view(boxes: np.ndarray, mask: np.ndarray, params: ViewParams, crop_size: int) -> np.ndarray:
    """Boxes (N, P, 4) in tile pixels -> float32 in view pixels, flips applied; zeros where masked."""
    matrix = view_matrix(params, crop_size)[:, None]
    x = boxes[..., 0::2] * matrix[..., 0, 0, None] + matrix[..., 0, 2, None]
    y = boxes[..., 1::2] * matrix[..., 1, 1, None] + matrix[..., 1, 2, None]
    x.sort(axis=-1)  # a flip swaps left and right
    y.sort(axis=-1)
    view = np.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), axis=-1)
    return np.where(mask[..., None], np.clip(view, 0.0, crop_size), 0.0).astype(np.float32)


def matched_boxes(
    draws: Draws, first: ViewParams, second: ViewParams, crop_size: int, config: BoxConfig
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Up to P matched boxes of each of N pairs of views of one tile.

    draws: gives uniforms of the images that still need some. Returns the boxes in the first and in the second view,
    float32 (N, P, 4) as x0, y0, x1, y1 in view pixels (edges, within [0, crop_size]), and their mask, bool (N, P).
    Fewer than P where the overlap holds no more, none where it is narrower than `min_side`; kept boxes come first, the
    others are zero.
    """
    low = np.maximum(first.rect[:, :2], second.rect[:, :2])
    high = np.minimum(first.rect[:, 2:], second.rect[:, 2:])
    length = np.maximum(high - low, 0.0)
    sides = np.maximum(first.rect[:, 2:] - first.rect[:, :2], second.rect[:, 2:] - second.rect[:, :2])
    scale = crop_size / sides  # of the coarser view: min_side there is at least min_side in the other
    kept, filled = np.zeros((4, len(first), config.count)), np.zeros(len(first), np.int64)
    lacking = np.flatnonzero(np.all(length * scale >= config.min_side, axis=1))
    start, size = 0, _FIRST_ROUND
    while len(lacking) and start < config.candidates:
        stop = min(start + size, config.candidates)
        u = draws(lacking, _DRAWS_PER_CANDIDATE * start, _DRAWS_PER_CANDIDATE * stop)
        u = u.reshape(len(lacking), -1, 2, 4).transpose(2, 3, 0, 1)
        spans = [_spans(low[lacking, i], length[lacking, i], scale[lacking, i], u[i], config.min_side) for i in (0, 1)]
        (x0, x1), (y0, y1) = spans
        part, counts = kept[:, lacking], filled[lacking]
        _first_fit(np.stack((x0, y0, x1, y1)), part, counts, config.max_iou)
        kept[:, lacking], filled[lacking] = part, counts
        lacking = lacking[counts < config.count]
        start, size = stop, _MORE * size
    boxes, mask = kept.transpose(1, 2, 0), np.arange(config.count) < filled[:, None]
    return boxes_in_view(boxes, mask, first, crop_size), boxes_in_view(boxes, mask, second, crop_size), mask
