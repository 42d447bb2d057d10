"""Dynamic Instances: pairs of boxes that cover the same ground in two views of a tile.

The published sampler, for a whole batch at once: the overlap of the two views is measured at the smaller of their
two scales, divided into a random grid whose cells are at least `min_side`, and a box of random sides is placed at
random inside a random cell. A candidate is kept if it overlaps less than `max_iou` with each box kept before it.
Two things differ from the published code. The IoU is tested in one frame, the tile's (the published code compares
boxes of two frames, so that 11 per cent of the images break the rule). And nothing is rounded to whole pixels: a pair
covers the same ground to the precision of float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from dic3l.config import BoxConfig
from dic3l.draws import njit
from dic3l.views import ViewParams, view_matrix

_DRAWS_PER_CANDIDATE = 8
"""grid columns and rows, cell column and row, sides, position"""
_FIRST_ROUND = 16
"""candidates that every image draws; most find their boxes among them"""
_MORE = 5
"""times the candidates in the next round, for the images that lack boxes"""

Draws = Callable[[np.ndarray, int, int], np.ndarray]
"""(rows, start, stop) -> uniforms (len(rows), stop - start) in [0, 1): columns start .. stop of some images' numbers"""


@njit
def _place(u, low, length, scale, min_side, max_iou, kept, filled):
    """Add to the boxes of each image, in order, the candidates that overlap less than `max_iou` with all before them.

    u: uniforms (N, 8 T); low, length: the overlap's start and size in tile pixels (N, 2); scale: view pixels a tile
    pixel (N, 2); kept: (N, P, 4) in tile pixels, of which the first `filled` (N,) are there; both are changed.
    Compiled: a few microseconds an image.
    """
    low_high = np.empty(4)
    for n in range(len(u)):
        for t in range(u.shape[1] // _DRAWS_PER_CANDIDATE):
            if filled[n] == kept.shape[1]:
                break
            for axis in range(2):
                at = t * _DRAWS_PER_CANDIDATE + 4 * axis
                span = length[n, axis] * scale[n, axis]
                cells = math.floor(u[n, at] * max(math.floor(span / min_side), 1.0)) + 1.0
                cell = span / cells
                side = min_side + u[n, at + 2] * max(cell - min_side, 0.0)
                start = math.floor(u[n, at + 1] * cells) * cell + u[n, at + 3] * (cell - side)
                low_high[axis] = low[n, axis] + start / scale[n, axis]
                low_high[axis + 2] = low[n, axis] + (start + side) / scale[n, axis]
            x0, y0, x1, y1 = low_high
            apart = True
            for other in range(filled[n]):
                a, b, c, d = kept[n, other]
                inter = max(min(x1, c) - max(x0, a), 0.0) * max(min(y1, d) - max(y0, b), 0.0)
                union = (x1 - x0) * (y1 - y0) + (c - a) * (d - b) - inter
                if inter >= max_iou * union:
                    apart = False
                    break
            if apart:
                kept[n, filled[n]] = low_high
                filled[n] += 1


def boxes_in_view(boxes: np.ndarray, mask: np.ndarray, params: ViewParams, crop_size: int) -> np.ndarray:
    """Boxes (N, P, 4) in tile pixels -> float32 in view pixels, flips applied; zeros where masked."""
    matrix = view_matrix(params, crop_size)
    scale, offset = matrix[:, (0, 1), (0, 1)][:, None, None], matrix[:, :, 2][:, None, None]
    ends = boxes.reshape(*mask.shape, 2, 2) * scale + offset
    view = np.empty(boxes.shape, np.float32)
    # a flip swaps the ends
    np.minimum(ends[:, :, 0], ends[:, :, 1], out=view[..., :2], casting="same_kind")
    np.maximum(ends[:, :, 0], ends[:, :, 1], out=view[..., 2:], casting="same_kind")
    np.clip(view, 0.0, crop_size, out=view)
    view *= mask[..., None]
    return view


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
    boxes, filled = np.zeros((len(first), config.count, 4)), np.zeros(len(first), np.int64)
    lacking = np.flatnonzero(np.all(length * scale >= config.min_side, axis=1))
    start, size = 0, _FIRST_ROUND
    while len(lacking) and start < config.candidates:
        stop = min(start + size, config.candidates)
        u = draws(lacking, _DRAWS_PER_CANDIDATE * start, _DRAWS_PER_CANDIDATE * stop)
        part, counts = boxes[lacking], filled[lacking]
        rule = config.min_side, config.max_iou
        _place(np.ascontiguousarray(u), low[lacking], length[lacking], scale[lacking], *rule, part, counts)
        boxes[lacking], filled[lacking] = part, counts
        lacking = lacking[counts < config.count]
        start, size = stop, _MORE * size
    mask = np.arange(config.count) < filled[:, None]
    return boxes_in_view(boxes, mask, first, crop_size), boxes_in_view(boxes, mask, second, crop_size), mask
