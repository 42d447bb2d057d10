"""Matched boxes: the same ground in both views, inside both, large enough, apart, and as a plain loop draws them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import box_iou

from dic3l.boxes import matched_boxes
from dic3l.config import BoxConfig, ViewConfig
from dic3l.draws import tile_uniforms
from dic3l.views import DRAWS_PER_VIEW, ViewParams, draw_view, view_matrix


def pairs(count: int, tile_hw, views: ViewConfig, boxes: BoxConfig, seed: int = 0):
    """(first, second, uniforms of the boxes) of `count` tiles."""
    ids = np.arange(count, dtype=np.uint64)
    u = tile_uniforms(seed, np.zeros(count, int), ids, 2 * DRAWS_PER_VIEW + 8 * boxes.candidates)
    first = draw_view(u[:, :DRAWS_PER_VIEW], tile_hw, views)
    second = draw_view(u[:, DRAWS_PER_VIEW : 2 * DRAWS_PER_VIEW], tile_hw, views)
    return first, second, u[:, 2 * DRAWS_PER_VIEW :]


def of(u: np.ndarray):
    """Uniforms as `matched_boxes` asks for them."""
    return lambda rows, start, stop: u[rows, start:stop]


def on_tile(boxes: np.ndarray, params: ViewParams, crop_size: int) -> np.ndarray:
    """Boxes of views (N, P, 4) on the tile, through the inverse matrix, float64."""
    matrix = np.concatenate((view_matrix(params, crop_size), np.tile([[[0, 0, 1]]], (len(params), 1, 1))), axis=1)
    inverse = np.linalg.inv(matrix)
    corners = boxes.reshape(*boxes.shape[:2], 2, 2).astype(np.float64)
    corners = np.concatenate((corners, np.ones((*corners.shape[:-1], 1))), axis=-1)
    ground = np.einsum("nij,npkj->npki", inverse, corners)[..., :2]
    return np.concatenate((ground.min(axis=2), ground.max(axis=2)), axis=-1)


@settings(deadline=None, max_examples=100)  # of 100 pairs of views each
@given(
    seed=st.integers(0, 10**6),
    crop=st.sampled_from([64, 96, 224, 448]),
    tile_hw=st.sampled_from([(512, 512), (256, 256), (300, 500)]),
    smallest=st.floats(0.05, 1.0),
    side=st.floats(4, 64),
    iou=st.floats(0.05, 0.9),
    flips=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
def test_pairs_cover_the_same_ground_inside_both_views_and_keep_the_rules(
    seed, crop, tile_hw, smallest, side, iou, flips
):
    config = BoxConfig(count=10, min_side=side, max_iou=iou, candidates=60)
    views = ViewConfig(
        crop_size=crop, area=(smallest, 1.0), flip_probability=flips[0], vertical_flip_probability=flips[1]
    )
    first, second, u = pairs(100, tile_hw, views, config, seed)
    boxes_first, boxes_second, mask = matched_boxes(of(u), first, second, crop, config)
    assert boxes_first.dtype == boxes_second.dtype == np.float32 and mask.dtype == bool
    assert (np.diff(mask.astype(int), axis=1) <= 0).all()  # kept boxes come first
    ground_first, ground_second = on_tile(boxes_first, first, crop), on_tile(boxes_second, second, crop)
    assert np.abs(ground_first - ground_second)[mask].max(initial=0) < 1e-3
    for boxes in (boxes_first, boxes_second):
        assert not boxes[~mask].any()
        assert boxes.min() >= 0 and boxes.max() <= crop
        assert (boxes[..., 2:] - boxes[..., :2])[mask].min(initial=np.inf) >= side - 1e-3
    left_top = np.maximum(ground_first[:, :, None, :2], ground_first[:, None, :, :2])
    inter = np.prod(np.maximum(np.minimum(ground_first[:, :, None, 2:], ground_first[:, None, :, 2:]) - left_top, 0), 3)
    area = np.prod(ground_first[..., 2:] - ground_first[..., :2], axis=2)
    overlaps = inter / (area[:, :, None] + area[:, None] - inter + 1e-12)
    both = mask[:, :, None] & mask[:, None] & ~np.eye(10, dtype=bool)
    assert overlaps[both].max(initial=0) < iou + 1e-4


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
    config = BoxConfig(min_side=64, max_iou=0.2, candidates=130)  # three rounds
    first, second, u = pairs(30, (512, 512), ViewConfig(area=(0.08, 1.0)), config, seed=4)
    boxes, _, mask = matched_boxes(of(u), first, second, 448, config)
    ground = on_tile(boxes, first, 448)
    assert len(np.unique(mask.sum(1))) > 2
    expected = by_a_loop(u, first, second, 448, config)
    np.testing.assert_array_equal(mask.sum(1), [len(kept) for kept in expected])
    for n, kept in enumerate(expected):
        np.testing.assert_allclose(ground[n, mask[n]], np.reshape(kept, (-1, 4)), atol=1e-4)


def test_views_that_hardly_meet_have_no_boxes():
    config = BoxConfig()
    first, _, u = pairs(3, (512, 512), ViewConfig(), config)
    rows = {
        "flip": first.flip,
        "flip_vertical": first.flip_vertical,
        "brightness": first.brightness,
        "contrast": first.contrast,
    }
    rows |= {"contrast_first": first.contrast_first, "blur_sigma": first.blur_sigma}
    left = ViewParams(rect=np.array([[0, 0, 250.0, 500]] * 3), **rows)
    right = ViewParams(rect=np.array([[260, 0, 510.0, 500], [245, 0, 495, 500], [100, 0, 350, 500]]), **rows)
    _, _, mask = matched_boxes(of(u), left, right, 448, config)
    assert mask.any(axis=1).tolist() == [False, False, True]  # apart; 9 px of overlap; half


def test_published_views_nearly_always_have_all_ten_boxes():
    config = BoxConfig()
    first, second, u = pairs(512, (512, 512), ViewConfig(), config)
    _, _, mask = matched_boxes(of(u), first, second, 448, config)
    assert mask.sum(1).mean() > 9.9


@pytest.mark.parametrize(("smallest", "side", "iou"), [(0.2, 32, 0.5), (0.08, 48, 0.3), (0.05, 64, 0.1)])
def test_at_least_as_many_boxes_as_a_rejection_sampler_of_fifty_tries_a_box_finds(smallest, side, iou):
    """The published scheme with the rule kept: each of ten boxes is tried fifty times, then given up."""
    config = BoxConfig(min_side=side, max_iou=iou)
    first, second, u = pairs(200, (512, 512), ViewConfig(area=(smallest, 1.0)), config, seed=8)
    _, _, mask = matched_boxes(of(u), first, second, 448, config)
    rng, found = np.random.default_rng(0), 0
    for n in range(200):
        low = np.maximum(first.rect[n, :2], second.rect[n, :2])
        length = np.maximum(np.minimum(first.rect[n, 2:], second.rect[n, 2:]) - low, 0)
        sides = np.maximum(first.rect[n, 2:] - first.rect[n, :2], second.rect[n, 2:] - second.rect[n, :2])
        span = length * 448 / sides
        if span.min() < side:
            continue
        kept: list[np.ndarray] = []
        for _ in range(10):
            for _ in range(50):
                parts = 1 + rng.integers(0, span // side)
                cell = span / parts
                size = side + rng.random(2) * (cell - side)
                start = rng.integers(0, parts) * cell + rng.random(2) * (cell - size)
                box = np.concatenate((start, start + size)) / np.tile(448 / sides, 2)
                if all(iou_of(box, other) < iou for other in kept):
                    kept.append(box)
                    break
        found += len(kept)
    assert mask.sum() >= found * 0.995 and found > 400  # two random samplers of the same boxes


def iou_of(a: np.ndarray, b: np.ndarray) -> float:
    inter = np.prod(np.maximum(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0))
    return float(inter / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inter))


@pytest.mark.parametrize("size", [1, 5])
def test_an_image_has_the_same_boxes_in_any_batch(size):
    config = BoxConfig()
    first, second, u = pairs(10, (512, 512), ViewConfig(), config)
    whole = matched_boxes(of(u), first, second, 448, config)
    rows = slice(3, 3 + size)
    for part, all_rows in zip(matched_boxes(of(u[rows]), first[rows], second[rows], 448, config), whole, strict=True):
        np.testing.assert_array_equal(part, all_rows[rows])
