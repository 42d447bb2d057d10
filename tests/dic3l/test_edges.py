"""Edges: where the truth has them, not where speckle is bright; matched in both views; the same for everyone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import polygamma

from dic3l.config import EdgeConfig, ViewConfig
from dic3l.draws import tile_uniforms
from dic3l.edges import CELL, edge_squares, edge_strength, squares_in_views, strongest, whole_views
from dic3l.views import DRAWS_PER_VIEW, ViewParams, draw_view, render, view_matrix

STEP_DB = 0.15


def coded(mean_db: np.ndarray, looks: float, seed: int = 0) -> np.ndarray:
    """8-bit codes of ground of this level (dB above the lowest code) under speckle."""
    rng = np.random.default_rng(seed)
    db = mean_db + 10 * np.log10(rng.gamma(looks, 1 / looks, mean_db.shape))
    return np.clip(np.rint(db / STEP_DB), 1, 255).astype(np.uint8)


def by_a_loop(codes: np.ndarray, looks: float) -> np.ndarray:
    """The ratio of averages said plainly, window by window, in float64."""
    rows, columns = codes.shape[0] // CELL, codes.shape[1] // CELL
    power = 10 ** (STEP_DB / 10 * codes.astype(float))
    found = np.zeros((rows + 1, columns + 1))

    def mean(i: int, j: int) -> float | None:
        window = (slice(i * CELL, (i + 2) * CELL), slice(j * CELL, (j + 2) * CELL))
        if i < 0 or j < 0 or i + 2 > rows or j + 2 > columns or (codes[window] == 0).any():
            return None
        return float(power[window].mean())

    for i in range(2, rows - 1):
        for j in range(2, columns - 1):
            pairs = [((i - 2, j - 2), (i, j)), ((i - 2, j), (i, j - 2))]
            pairs += [((i - 1, j - 2), (i - 1, j)), ((i - 2, j - 1), (i, j - 1))]
            for a, b in pairs:
                one, other = mean(*a), mean(*b)
                if one and other:
                    found[i, j] = max(found[i, j], abs(np.log(one / other)))
    return found / np.sqrt(2 * polygamma(1, (2 * CELL) ** 2 * looks))


def test_strength_is_the_ratio_of_averages_of_a_plain_loop():
    codes = coded(np.full((48, 64), 12.0), 3.0)
    codes[20:23, 30:40] = 0
    ours, loop = edge_strength(codes, STEP_DB, 3.0), by_a_loop(codes, 3.0)
    inner = (slice(2, -2), slice(2, -2))  # at the rim only two of the four directions fit, which the loop leaves out
    np.testing.assert_allclose(ours[inner], loop[inner], rtol=1e-3, atol=1e-4)
    assert not ours[0].any() and not ours[:, -1].any()


@pytest.mark.parametrize("looks", [1.0, 4.0, 20.0])
def test_on_homogeneous_speckle_strength_is_that_of_chance(looks):
    """One direction is a normal deviate nearly: of four, five deviations come about once in half a million."""
    strength = edge_strength(coded(np.full((1024, 1024), 18.0), looks), STEP_DB, looks)[4:-4, 4:-4]
    assert (strength > 5).mean() < 2e-4
    # the median of the largest of four half-normals, two pairs of which share no pixel
    expected = stats.halfnorm.ppf(0.5 ** (1 / 4))
    assert np.median(strength) == pytest.approx(expected, rel=0.12)


def test_a_step_of_five_db_under_single_look_speckle_is_found_where_it_is():
    level = np.full((256, 256), 15.0)
    level[:, 101:] += 5.0
    points, weight = strongest(edge_strength(coded(level, 1.0), STEP_DB, 1.0))
    found = points[weight >= 5]
    assert len(found) >= 12 and (np.abs(found[:, 0] - 101) <= 8).mean() > 0.9


def test_unknown_looks_count_as_one_and_tiles_of_no_size_have_no_edges():
    codes = coded(np.full((64, 64), 15.0), 4.0)
    assert np.array_equal(edge_strength(codes, STEP_DB, float("nan")), edge_strength(codes, STEP_DB, 1.0))
    assert not edge_strength(codes[:10, :10], STEP_DB, 1.0).any()
    assert not edge_strength(np.zeros((64, 64), np.uint8), STEP_DB, 1.0).any()


@settings(max_examples=50)
@given(seed=st.integers(0, 10**6), side=st.floats(4, 40), smallest=st.floats(0.1, 1.0))
def test_squares_lie_in_both_views_cover_the_same_ground_and_are_centred_on_edges(seed, side, smallest):
    config, crop = EdgeConfig(count=5, side=side, significance=1.0), 96
    views = ViewConfig(crop_size=crop, area=(smallest, 1.0), vertical_flip_probability=0.5)
    u = tile_uniforms(seed, np.zeros(6, int), np.arange(6, dtype=np.uint64), 2 * DRAWS_PER_VIEW + 1)
    first = draw_view(u[:, :DRAWS_PER_VIEW], (128, 128), views)
    second = draw_view(u[:, DRAWS_PER_VIEW : 2 * DRAWS_PER_VIEW], (128, 128), views)
    strength = edge_strength(coded(np.full((128, 128), 15.0), 1.0, seed), STEP_DB, 1.0)
    squares = [edge_squares(strength, u[n, -1], (first.rect[n], second.rect[n]), crop, config) for n in range(6)]
    again = edge_squares(strength, u[0, -1], (first.rect[0], second.rect[0]), crop, config)
    assert np.array_equal(again, squares[0])
    one, other, mask = squares_in_views(squares, first, second, crop, config)
    for n, found in enumerate(squares):
        assert len(found) == mask[n].sum() <= 5
        centres = (found[:, :2] + found[:, 2:]) / 2
        assert len(np.unique(centres, axis=0)) == len(found) and not (centres % CELL).any()
        for boxes, params in ((one, first), (other, second)):
            inside = boxes[n, mask[n]]
            assert inside.min(initial=0) >= 0 and inside.max(initial=0) <= crop
            assert (inside[:, 2:] - inside[:, :2]).min(initial=np.inf) >= side - 1e-3
            matrix = view_matrix(params[n : n + 1], crop)[0]
            middle = (inside[:, :2] + inside[:, 2:]) / 2
            np.testing.assert_allclose(middle, centres * np.diag(matrix[:, :2]) + matrix[:, 2], atol=1e-3)
        if not mask[n, 0]:
            assert one[n, 0].tolist() == other[n, 0].tolist() == [0, 0, crop, crop]


def test_stronger_edges_are_drawn_more_often_and_others_too():
    strength = np.zeros((33, 33), np.float32)
    strength[2::4, 2::4] = 5.0
    strength[18, 18] = 50.0
    rect = np.array([0.0, 0, 128, 128])
    config = EdgeConfig(count=4, side=8)
    seen = [edge_squares(strength, u, (rect, rect), 96, config) for u in np.linspace(0, 1, 200, endpoint=False)]
    centres = np.concatenate([(found[:, :2] + found[:, 2:]) / 2 for found in seen])
    strong = (centres == 72).all(axis=1).sum()
    # one of 64 would be drawn by 4 of 64 chances: in 12 of 200 epochs
    assert strong > 60 and len(np.unique(centres, axis=0)) > 30


def test_published_branch_is_the_whole_view():
    first, second, mask = whole_views(3, 96)
    assert first.shape == second.shape == (3, 1, 4) and mask.all() and first[1, 0].tolist() == [0, 0, 96, 96]


def test_of_a_coordinate_ramp_squares_of_both_views_hold_the_same_ground():
    """End to end: pixels of both views, pooled in their squares, tell the same place on the tile."""
    ramp = np.arange(0, 256, dtype=np.uint8)[None].repeat(256, 0)
    rects = np.array([[10.3, 20.2, 201.7, 180.9], [60.1, 5.5, 250.2, 199.3]])
    plain = dict.fromkeys(("brightness", "contrast"), np.ones(1)) | {"blur_sigma": np.zeros(1)}
    views = [
        ViewParams(rect[None], np.array([flip]), np.array([upside]), contrast_first=np.zeros(1, bool), **plain)
        for rect, flip, upside in zip(rects, (True, False), (False, True), strict=True)
    ]
    strength = np.full((65, 65), 9.0, np.float32)
    squares = edge_squares(strength, 0.3, (rects[0], rects[1]), 160, EdgeConfig(side=20))
    one, other, mask = squares_in_views([squares], *views, 160, EdgeConfig(side=20))
    assert mask.sum() == 8
    for tile in (ramp, ramp.T.copy()):
        means = []
        for params, boxes in zip(views, (one, other), strict=True):
            view = render(tile[None, None], params, 160)[0, 0].astype(float)
            centres = np.rint((boxes[0, :, :2] + boxes[0, :, 2:]) / 2).astype(int)
            means.append([view[y - 3 : y + 3, x - 3 : x + 3].mean() for x, y in centres])
        assert np.abs(np.subtract(*means)).max() < 1.0
