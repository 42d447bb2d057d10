"""Segmentation scores out of one confusion matrix.

All pixels of all test images are pooled into one matrix before anything is divided: the scores of a test set, not
the mean of scores of images, in which an image without a class has no say or too much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int = 255) -> np.ndarray:
    """Counts, int64 (classes, classes): rows are the truth, columns the prediction.

    `truth` and `predicted`: integers of one shape, 0 to classes - 1; pixels whose truth is `ignored` do not count.
    """
    keep = truth != ignored
    pairs = truth[keep].astype(np.int64) * classes + predicted[keep].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class Scores:
    """Scores of a test set, all in 0..1 but kappa (-1..1).

    A class that the truth does not have has no scores (NaN) and no part in the means, also where it is predicted (the
    pixels are missing from their own class then): so all maps of one test set are judged by the same classes.
    """

    accuracy: float
    """overall accuracy: correct pixels / pixels"""
    kappa: float
    """Cohen's kappa: agreement beyond that of two independent maps with these class shares"""
    miou: float
    """unweighted mean of the IoU of the classes that the truth has"""
    mean_f1: float
    iou: tuple[float, ...]
    f1: tuple[float, ...]
    precision: tuple[float, ...]
    recall: tuple[float, ...]


def scores(matrix: np.ndarray) -> Scores:
    """The scores of a confusion matrix (rows: truth)."""
    counts = matrix.astype(np.float64)
    total, hits = counts.sum(), np.diag(counts)
    in_truth, in_prediction = counts.sum(axis=1), counts.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        accuracy = hits.sum() / total
        by_chance = (in_truth * in_prediction).sum() / total**2
        kappa = (accuracy - by_chance) / (1 - by_chance)
        there = np.where(in_truth > 0, 1.0, np.nan)
        iou = there * hits / (in_truth + in_prediction - hits)
        f1 = there * 2 * hits / (in_truth + in_prediction)
        precision, recall = there * hits / in_prediction, hits / in_truth
    return Scores(
        accuracy=float(accuracy),
        kappa=float(kappa),
        miou=_mean(iou),
        mean_f1=_mean(f1),
        iou=tuple(iou.tolist()),
        f1=tuple(f1.tolist()),
        precision=tuple(precision.tolist()),
        recall=tuple(recall.tolist()),
    )


def _mean(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
