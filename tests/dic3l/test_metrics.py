"""Scores agree with scikit-learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sklearn import metrics as sk

from dic3l.evaluate.metrics import confusion, scores

EACH: Any = None
"""scikit-learn's word for a score by class; its stubs want a str"""


def _maps(classes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, (40, 50)).astype(np.uint8)
    predicted = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape)).astype(np.uint8)
    truth[rng.random(truth.shape) < 0.1] = 255
    return truth, predicted


@pytest.mark.parametrize("classes", [2, 5])
def test_scores_agree_with_scikit_learn(classes: int) -> None:
    truth, predicted = _maps(classes, seed=classes)
    matrix = confusion(truth, predicted, classes)
    keep = truth != 255
    t, p = truth[keep], predicted[keep]
    np.testing.assert_array_equal(matrix, sk.confusion_matrix(t, p))
    found = scores(matrix)
    assert found.accuracy == pytest.approx(sk.accuracy_score(t, p))
    assert found.kappa == pytest.approx(sk.cohen_kappa_score(t, p))
    assert found.iou == pytest.approx(sk.jaccard_score(t, p, average=EACH))
    assert found.miou == pytest.approx(sk.jaccard_score(t, p, average="macro"))
    assert found.f1 == pytest.approx(sk.f1_score(t, p, average=EACH))
    assert found.mean_f1 == pytest.approx(sk.f1_score(t, p, average="macro"))
    assert found.precision == pytest.approx(sk.precision_score(t, p, average=EACH))
    assert found.recall == pytest.approx(sk.recall_score(t, p, average=EACH))


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


def test_confusions_of_parts_add_up() -> None:
    truth, predicted = _maps(3, seed=0)
    parts = sum(confusion(t, p, 3) for t, p in zip(truth, predicted, strict=True))
    np.testing.assert_array_equal(parts, confusion(truth, predicted, 3))
