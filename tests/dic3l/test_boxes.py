"""Matched boxes: the same ground in both views, inside both, large enough, apart, and as a plain loop draws them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from dic3l.boxes import box_draws, matched_boxes
from dic3l.config import BoxConfig, ViewConfig
from dic3l.draws import tile_uniforms
from dic3l.views import DRAWS_PER_VIEW, ViewParams, draw_view, view_matrix


def pairs(count: int, tile_hw, views: ViewConfig, boxes: BoxConfig, seed: int = 0):
    """(first, second, uniforms of the boxes) of `count` tiles."""
    ids = np.arange(count, dtype=np.uint64)
    u = tile_uniforms(seed, np.zeros(count, int), ids, 2 * DRAWS_PER_VIEW + box_draws(boxes))
    first = draw_view(u[:, :DRAWS_PER_VIEW], tile_hw, views)
    second = draw_view(u[:, DRAWS_PER_VIEW : 2 * DRAWS_PER_VIEW], tile_hw, views)
    return first, second, u[:, 2 * DRAWS_PER_VIEW :]


def on_tile(boxes: np.ndarray, params: ViewParams, crop_size: int) -> np.ndarray:
    """Boxes of views (N, P, 4) on the tile, through the inverse matrix, float64."""
    matrix = np.concatenate((view_matrix(params, crop_size), np.tile([[[0, 0, 1]]], (len(params), 1, 1))), axis=1)
    inverse = np.linalg.inv(matrix)
    corners = boxes.reshape(*boxes.shape[:2], 2, 2).astype(np.float64)
    corners = np.concatenate((corners, np.ones((*corners.shape[:-1], 1))), axis=-1)
    ground = np.einsum("nij,npkj->npki", inverse, corners)[..., :2]
    return np.concatenate((ground.min(axis=2), ground.max(axis=2)), axis=-1)


@settings(deadline=None, max_examples=40)
@given(
    seed=st.integers(0, 10**6),
    crop=st.sampled_from([64, 96, 224, 448]),
    tile_hw=st.sampled_from([(512, 512), (256, 256), (300, 500)]),
    smallest=st.floats(0.05, 1.0),
    side=st.floats(4, 64),
    iou=st.floats(0.05, 0.9),
)
def test_pairs_cover_the_same_ground_inside_both_views_and_keep_the_rules(seed, crop, tile_hw, smallest, side, iou):
    config = BoxConfig(count=10, min_side=side, max_iou=iou, candidates=24)
    first, second, u = pairs(16, tile_hw, ViewConfig(crop_size=crop, area=(smallest, 1.0)), config, seed)
    boxes_first, boxes_second, mask = matched_boxes(u, first, second, crop, config)
    assert boxes_first.dtype == boxes_second.dtype == np.float32 and mask.dtype == bool
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # kept boxes come first
    ground_first, ground_second = on_tile(boxes_first, first, crop), on_tile(boxes_second, second, crop)
    assert np.abs(ground_first - ground_second)[mask].max(initial=0) < 1e-3
    for boxes in (boxes_first, boxes_second):
        assert not boxes[~mask].any()
        assert boxes.min() >= 0 and boxes.max() <= crop
        assert (boxes[..., 2:] - boxes[..., :2])[mask].min(initial=np.inf) >= side - 1e-3
    for ground, valid in zip(ground_first, mask, strict=True):
        overlaps = box_iou(torch.from_numpy(ground[valid]), torch.from_numpy(ground[valid])).numpy()
        assert np.triu(overlaps, 1).max(initial=0) < iou + 1e-4


def by_a_loop(u, first, second, crop, config):
    """The sampler said plainly, one image and one candidate at a time; boxes on the tile."""
    images = []
    for n in range(len(first)):
        a, b = first.rect[n], second.rect[n]
        x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
        scale = [min(crop / (r[2 + i] - r[i]) for r in (a, b)) for i in (0, 1)]
        sides = [(x1 - x0) * scale[0], (y1 - y0) * scale[1]]
        kept: list[list[float]] = []
        if min(sides) >= config.min_side and x1 > x0 and y1 > y0:
            for draws in u[n].reshape(config.candidates, 2, 4):
                span = []
                for axis in (0, 1):
                    parts = 1 + int(draws[axis, 0] * int(sides[axis] // config.min_side))
                    cell = sides[axis] / parts
                    side = config.min_side + draws[axis, 2] * (cell - config.min_side)
                    start = int(draws[axis, 1] * parts) * cell + draws[axis, 3] * (cell - side)
                    span.append(((x0, y0)[axis] + start / scale[axis], side / scale[axis]))
                (left, width), (top, height) = span
                box = [left, top, left + width, top + height]
                far = all(float(box_iou(torch.tensor([box]), torch.tensor([k]))) < config.max_iou for k in kept)
                if far and len(kept) < config.count:
                    kept.append(box)
        images.append(kept)
    return images


def test_boxes_are_those_of_a_plain_loop():
    config = BoxConfig(candidates=20)
    first, second, u = pairs(40, (512, 512), ViewConfig(), config, seed=4)
    boxes, _, mask = matched_boxes(u, first, second, 448, config)
    ground = on_tile(boxes, first, 448)
    expected = by_a_loop(u, first, second, 448, config)
    np.testing.assert_array_equal(mask.sum(1), [len(kept) for kept in expected])
    for n, kept in enumerate(expected):
        np.testing.assert_allclose(ground[n, mask[n]], np.reshape(kept, (-1, 4)), atol=1e-4)


def test_views_that_hardly_meet_have_no_boxes():
    config = BoxConfig()
    first, _, u = pairs(3, (512, 512), ViewConfig(), config)
    rows = {"flip": first.flip, "brightness": first.brightness, "contrast": first.contrast}
    rows |= {"contrast_first": first.contrast_first, "blur_sigma": first.blur_sigma}
    left = ViewParams(rect=np.array([[0, 0, 250.0, 500]] * 3), **rows)
    right = ViewParams(rect=np.array([[260, 0, 510.0, 500], [245, 0, 495, 500], [100, 0, 350, 500]]), **rows)
    _, _, mask = matched_boxes(u, left, right, 448, config)
    assert mask.any(axis=1).tolist() == [False, False, True]  # apart; 9 px of overlap; half


def test_published_views_nearly_always_have_all_ten_boxes():
    config = BoxConfig()
    first, second, u = pairs(512, (512, 512), ViewConfig(), config)
    _, _, mask = matched_boxes(u, first, second, 448, config)
    assert mask.sum(1).mean() > 9.8


@pytest.mark.parametrize("size", [1, 5])
def test_an_image_has_the_same_boxes_in_any_batch(size):
    config = BoxConfig()
    first, second, u = pairs(10, (512, 512), ViewConfig(), config)
    whole = matched_boxes(u, first, second, 448, config)
    rows = slice(3, 3 + size)
    for part, all_rows in zip(matched_boxes(u[rows], first[rows], second[rows], 448, config), whole, strict=True):
        np.testing.assert_array_equal(part, all_rows[rows])
