"""Matched boxes of 256 pairs of views: all at once against a loop over images, boxes and tries.

    python -m benchmarks.boxes

The loop is the published scheme with its rule kept: each of ten boxes of an image is tried up to fifty times, on a
random grid over the overlap, against the boxes before it. Both ways draw their own random numbers; the limit is to draw
the numbers that the first round of candidates needs.
"""

from __future__ import annotations

import numpy as np

from benchmarks.timing import best_seconds, print_rates
from dic3l.boxes import matched_boxes
from dic3l.config import BoxConfig, ViewConfig
from dic3l.draws import tile_uniforms
from dic3l.views import DRAWS_PER_VIEW, ViewParams, draw_view

IMAGES, CROP, TRIES, FIRST_ROUND = 256, 448, 50, 112


def by_a_loop(first: ViewParams, second: ViewParams, rng: np.random.Generator, config: BoxConfig) -> int:
    """Boxes found."""
    found = 0
    for a, b in zip(first.rect.tolist(), second.rect.tolist(), strict=True):
        x0, y0 = max(a[0], b[0]), max(a[1], b[1])
        scale_x, scale_y = (CROP / max(a[2 + i] - a[i], b[2 + i] - b[i]) for i in (0, 1))
        width, height = (min(a[2], b[2]) - x0) * scale_x, (min(a[3], b[3]) - y0) * scale_y
        side = config.min_side
        if width < side or height < side:
            continue
        kept: list[tuple[float, float, float, float]] = []
        for _ in range(config.count):
            for _ in range(TRIES):
                u = rng.random(8)
                columns, rows = 1 + int(u[0] * (width // side)), 1 + int(u[1] * (height // side))
                cell_w, cell_h = width / columns, height / rows
                w, h = side + u[2] * (cell_w - side), side + u[3] * (cell_h - side)
                left = int(u[4] * columns) * cell_w + u[5] * (cell_w - w)
                top = int(u[6] * rows) * cell_h + u[7] * (cell_h - h)
                box = (left, top, left + w, top + h)
                if all(iou(box, other) < config.max_iou for other in kept):
                    kept.append(box)
                    break
        found += len(kept)
    return found


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def main() -> None:
    ids, epochs, config = np.arange(IMAGES, dtype=np.uint64), np.zeros(IMAGES, np.int64), BoxConfig()
    u = tile_uniforms(0, epochs, ids, 2 * DRAWS_PER_VIEW)
    first, second = (draw_view(part, (512, 512), ViewConfig()) for part in np.split(u, 2, axis=1))
    rng, counts = np.random.default_rng(0), {}

    def draws(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
        return tile_uniforms(0, epochs[rows], ids[rows], 64 + stop, 64 + start)

    def at_once() -> None:
        counts["all at once"] = int(matched_boxes(draws, first, second, CROP, config)[2].sum())

    def loop() -> None:
        counts["loop"] = by_a_loop(first, second, rng, config)

    ways = {
        "dic3l.boxes, all at once": at_once,
        "loop over images, boxes and tries": loop,
        "limit: draw the numbers": lambda: draws(np.arange(IMAGES), 0, FIRST_ROUND),
    }
    seconds = best_seconds(ways, repetitions=7)
    print_rates(f"boxes of {IMAGES} pairs of views, one thread", "images/s", IMAGES, seconds)
    ours, theirs, _ = seconds.values()
    print(f"\n{1000 * ours:.1f} ms against {1000 * theirs:.1f} ms: {theirs / ours:.1f} x; boxes found: {counts}")


if __name__ == "__main__":
    main()
