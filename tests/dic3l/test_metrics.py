"""Scores agree with scikit-learn and torchmetrics, those of boundaries and lines with distances of all pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from dic3l.evaluate.metrics import (
    BOUNDARY_TOLERANCE,
    RELAXATION,
    Tally,
    confusion,
    empty_tally,
    map_tally,
    near_scores,
    pixel_tally,
    scores,
)

EACH: Any = None
"""scikit-learn's word for a score by class; its stubs want a str"""
EXACT = 1e-9


def _maps(classes: int, seed: int, shape: tuple[int, int] = (40, 50)) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, shape).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth, predicted


def _blobs(classes: int, seed: int, side: int = 28) -> tuple[np.ndarray, np.ndarray]:
    """Coarse fields, the prediction moved and scribbled over, some of the truth unknown: boundaries of all kinds."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (side // 7 + 1, side // 7 + 1)).repeat(7, 0).repeat(7, 1)[:side, : side - 3]
    predicted = np.roll(truth, rng.integers(-5, 6, 2), (0, 1))
    predicted = np.where(rng.random(truth.shape) < 0.02, rng.integers(0, classes, truth.shape), predicted)
    truth = truth.astype(np.uint8)
    truth[rng.random(truth.shape) < 0.05] = 255
    truth[3:9, 5:12] = 255
    return truth, predicted.astype(np.uint8)


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_agree_with_scikit_learn(classes: int) -> None:
    truth, predicted = _maps(classes, seed=classes)
    matrix = confusion(truth, predicted, classes)
    keep = truth != 255
    t, p = truth[keep], predicted[keep]
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(t, p))
    found = scores(matrix)
    assert found.accuracy == pytest.approx(sk.accuracy_score(t, p), abs=EXACT)
    assert found.kappa == pytest.approx(sk.cohen_kappa_score(t, p), abs=EXACT)
    assert found.iou == pytest.approx(sk.jaccard_score(t, p, average=EACH), abs=EXACT)
    assert found.miou == pytest.approx(sk.jaccard_score(t, p, average="macro"), abs=EXACT)
    assert found.f1 == pytest.approx(sk.f1_score(t, p, average=EACH), abs=EXACT)
    assert found.mean_f1 == pytest.approx(sk.f1_score(t, p, average="macro"), abs=EXACT)
    assert found.precision == pytest.approx(sk.precision_score(t, p, average=EACH), abs=EXACT)
    assert found.recall == pytest.approx(sk.recall_score(t, p, average=EACH), abs=EXACT)


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_agree_with_torchmetrics(classes: int) -> None:
    """Which computes in float32."""
    torch = pytest.importorskip("torch")
    tm = pytest.importorskip("torchmetrics.functional.classification")
    truth, predicted = _maps(classes, seed=10 + classes)
    t, p = torch.from_numpy(truth).long(), torch.from_numpy(predicted).long()
    found = scores(confusion(truth, predicted, classes))
    given: dict[str, Any] = {"num_classes": classes, "ignore_index": 255}
    assert found.accuracy == pytest.approx(tm.multiclass_accuracy(p, t, average="micro", **given).item(), abs=1e-6)
    assert found.kappa == pytest.approx(tm.multiclass_cohen_kappa(p, t, **given).item(), abs=1e-5)
    assert found.iou == pytest.approx(tm.multiclass_jaccard_index(p, t, average=None, **given).tolist(), abs=1e-6)
    assert found.miou == pytest.approx(tm.multiclass_jaccard_index(p, t, average="macro", **given).item(), abs=1e-6)
    assert found.f1 == pytest.approx(tm.multiclass_f1_score(p, t, average="none", **given).tolist(), abs=1e-6)


def test_a_class_that_nobody_has_is_left_out_of_the_mean() -> None:
    found = scores(np.array([[3, 1, 0], [1, 5, 0], [0, 0, 0]]))
    assert np.isnan(found.iou[2])
    assert found.miou == pytest.approx((3 / 5 + 5 / 7) / 2)


def test_a_class_that_the_truth_lacks_has_no_part_in_the_mean_predicted_or_not() -> None:
    """Else two maps of one test set would be means over different classes: 0.75 against 0.375 for the same pixels."""
    predicted, not_predicted = scores(np.array([[3, 1], [0, 0]])), scores(np.array([[4, 0], [0, 0]]))
    assert np.isnan(predicted.iou[1]) and np.isnan(predicted.f1[1]) and np.isnan(not_predicted.iou[1])
    assert (predicted.miou, predicted.mean_f1) == pytest.approx((0.75, 6 / 7))
    assert not_predicted.miou == 1.0


def test_tallies_of_parts_add_up_and_survive_json() -> None:
    pairs = [_blobs(3, seed) for seed in range(3)]
    total = empty_tally(3)
    for truth, predicted in pairs:
        total += map_tally(truth, predicted, 3)
    stacked = [np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1)]
    np.testing.assert_array_equal(total.confusion, confusion(*stacked, 3))
    for name in ("boundary", "relaxed"):
        np.testing.assert_array_equal(getattr(total, name), sum(getattr(map_tally(*pair, 3), name) for pair in pairs))
        np.testing.assert_array_equal(getattr(Tally.from_json(total.to_json()), name), getattr(total, name))
    np.testing.assert_array_equal(pixel_tally(*stacked, 3).confusion, total.confusion)
    assert not pixel_tally(*stacked, 3).relaxed.any()


# ---------------------------------------------------------------------------------------------- what lies near


def _rim_by_hand(classes: np.ndarray, known: np.ndarray, number: int) -> list[tuple[int, int]]:
    height, width = classes.shape
    found = []
    for y in range(height):
        for x in range(width):
            if not known[y, x] or classes[y, x] != number:
                continue
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            inside = [(v, u) for v, u in around if 0 <= v < height and 0 <= u < width and known[v, u]]
            if any(classes[v, u] != number for v, u in inside):
                found.append((y, x))
    return found


def _scores_by_hand(
    found: list[tuple[int, int]], true: list[tuple[int, int]], reach: float
) -> tuple[float, float, float]:
    """Precision, recall, F1 from the distances of all pairs of pixels."""
    if not true:
        return (np.nan, np.nan, np.nan)
    if not found:
        return (np.nan, 0.0, 0.0)
    apart = np.sqrt(((np.array(found)[:, None] - np.array(true)[None]).astype(float) ** 2).sum(axis=2))
    precision, recall = (apart.min(axis=1) <= reach).mean(), (apart.min(axis=0) <= reach).mean()
    return precision, recall, 0.0 if precision + recall == 0 else 2 * precision * recall / (precision + recall)


def _pixels(mask: np.ndarray) -> list[tuple[int, int]]:
    return [(int(y), int(x)) for y, x in np.argwhere(mask)]


@given(st.integers(2, 4), st.integers(0, 10_000), st.booleans())
def test_boundary_and_relaxed_scores_are_those_of_all_distances(classes: int, seed: int, noisy: bool) -> None:
    truth, predicted = _maps(classes, seed, (24, 20)) if noisy else _blobs(classes, seed)
    known = truth != 255
    tally = map_tally(truth, predicted, classes)
    boundary, relaxed = near_scores(tally.boundary), near_scores(tally.relaxed)
    for number in range(classes):
        rims = [_rim_by_hand(one, known, number) for one in (predicted, truth)]
        expected = _scores_by_hand(*rims, BOUNDARY_TOLERANCE)
        got = (boundary.precision[number], boundary.recall[number], boundary.f1[number])
        np.testing.assert_allclose(got, expected, rtol=0, atol=EXACT)
        areas = [_pixels((one == number) & known) for one in (predicted, truth)]
        expected = _scores_by_hand(*areas, RELAXATION)
        got = (relaxed.precision[number], relaxed.recall[number], relaxed.f1[number])
        np.testing.assert_allclose(got, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize(("moved", "relaxed_f1"), [(0, 1.0), (3, 1.0), (4, 0.0)])
def test_a_road_that_lies_three_pixels_off_is_found_and_one_four_off_is_not(moved: int, relaxed_f1: float) -> None:
    truth = np.zeros((40, 40), np.uint8)
    truth[:, 10] = 1
    tally = map_tally(truth, np.roll(truth, moved, 1), 2)
    assert near_scores(tally.relaxed).f1[1] == relaxed_f1
    assert near_scores(tally.boundary).f1[1] == relaxed_f1
    assert scores(tally.confusion).iou[1] == (1.0 if moved == 0 else 0.0)


def test_a_road_drawn_too_long_costs_precision_and_one_drawn_too_short_recall() -> None:
    half, whole = np.zeros((2, 100, 40), np.uint8)
    half[:50, 10], whole[:, 10] = 1, 1
    longer, shorter = near_scores(map_tally(half, whole, 2).relaxed), near_scores(map_tally(whole, half, 2).relaxed)
    assert (longer.precision[1], longer.recall[1]) == (0.53, 1.0)
    assert (shorter.precision[1], shorter.recall[1]) == (1.0, 0.53)


def test_the_frame_of_an_image_and_unknown_pixels_are_no_boundary() -> None:
    truth = np.zeros((20, 20), np.uint8)
    truth[:, 10:12] = 255
    truth[:, 12:] = 1
    assert not map_tally(truth, truth.clip(max=1), 2).boundary.any()
    assert np.isnan(near_scores(map_tally(truth, truth.clip(max=1), 2).boundary).f1).all()


def test_near_scores_of_a_class_that_is_absent_or_never_found() -> None:
    found = near_scores(np.array([[5, 0, 0, 0], [0, 0, 4, 0], [3, 0, 4, 0]]))
    assert np.isnan([found.f1[0], found.precision[0], found.recall[0], found.precision[1]]).all()
    assert (found.f1[1], found.recall[1], found.f1[2], found.precision[2]) == (0, 0, 0, 0)
