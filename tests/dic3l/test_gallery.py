"""The gallery shows what a run sees: the same pixels and boxes as its batches, and the same ground in matched boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dic3l.errors import ConfigError, Dic3lError
from dic3l.gallery import gallery, pairs
from dic3l.stream import Stream
from tests.dic3l.test_stream import KNOWING, BothTiles, FakeTiles, settings

EDGES = {"method__contour": "edges", "edges__side": 4.0, "edges__significance": 3.0}


@pytest.mark.parametrize("changes", [{}, KNOWING, EDGES])
def test_pairs_are_the_views_and_boxes_of_a_run(changes):
    tiles, config = BothTiles(), settings(**changes)
    batch, (indices, _) = Stream(tiles, config).batch(0), Stream(tiles, config).plan(0)
    shown = pairs(tiles, config, 5)
    assert [pair.key for pair in shown] == [tiles.keys[index] for index in indices[:5]]
    order = batch.perm.numpy().tolist()
    for row, pair in enumerate(shown):
        of_key = order.index(row)
        np.testing.assert_array_equal(pair.first, batch.query_views[row, 0])
        np.testing.assert_array_equal(pair.second, batch.key_views[of_key, 0])
        np.testing.assert_array_equal(pair.boxes[0], batch.query_boxes[row][batch.query_mask[row]])
        np.testing.assert_array_equal(pair.boxes[1], batch.key_boxes[of_key][batch.key_mask[of_key]])
        on_edges = batch.point_mask[row] & (changes is EDGES)
        np.testing.assert_array_equal(pair.points[0], batch.query_points[row][on_edges])
        np.testing.assert_array_equal(pair.points[1], batch.key_points[of_key][on_edges])
    assert (sum(len(pair.points[0]) for pair in shown) > 0) == (changes is EDGES)


def test_matched_boxes_hold_the_same_ground():
    """Tiles whose codes rise along x and y: means of matched boxes agree."""

    class Ramp(FakeTiles):
        def __init__(self) -> None:
            super().__init__()
            rows, cols = np.indices((48, 48))
            self._pixels = np.repeat((40 + 2 * rows + 2 * cols).astype(np.uint8)[None, None], len(self), 0)

    still = {"views__jitter_probability": 0.0, "views__blur_probability": 0.0}
    compared = 0
    for pair in pairs(Ramp(), settings(**still), 12):
        for one, other in zip(*pair.boxes, strict=True):
            means = [
                view[round(y0) : round(y1), round(x0) : round(x1)].mean()
                for view, (x0, y0, x1, y1) in ((pair.first, one), (pair.second, other))
            ]
            assert abs(means[0] - means[1]) < 5  # of 190; boxes are rounded to pixels
            compared += 1
    assert compared > 10


def test_gallery_is_written_and_says_what_is_wrong(tmp_path: Path):
    for count in (1, 7, 60):
        gallery(FakeTiles(), settings(), tmp_path / "a" / f"{count}.png", count)
        with Image.open(tmp_path / "a" / f"{count}.png") as image:
            assert len(np.unique(np.asarray(image.convert("L")))) > 20
    for out, count, told in (("x.jpg", 3, "ends in .png"), ("x.png", 0, "--count: expected from 1 to 60")):
        with pytest.raises(ConfigError, match=told):
            gallery(FakeTiles(), settings(), tmp_path / out, count)
    (tmp_path / "file").write_text("")
    with pytest.raises(Dic3lError, match="cannot be written"):
        gallery(FakeTiles(), settings(), tmp_path / "file" / "x.png", 2)
