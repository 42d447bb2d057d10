"""Segmentation scores out of pooled counts: of pixels, of boundaries, and of thin lines within a buffer.

All pixels of all test images are counted together before anything is divided: the scores of a test set, not the mean
of scores of images, in which an image without a class has no say or too much.

- boundary F1: Csurka et al., "What is a good evaluation measure for semantic segmentation?", BMVC 2013, by class, with
  the disk of Perazzi et al., CVPR 2016 (DAVIS) in place of a matching of points: a boundary pixel is found where the
  other map has one of its class within a tolerance. They divide by image, here counts are pooled.
- relaxed F1: Mnih, "Machine Learning for Aerial Image Labeling", 2013, section 5.4.1: precision is the share of
  predicted road pixels within rho pixels of a true one, recall that of true ones within rho of a predicted one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

BOUNDARY_TOLERANCE = 3.0
"""pixels; 0.75 per cent of the diagonal of 256 x 256 to 384 x 384, as in Csurka et al."""
RELAXATION = 3.0
"""rho of Mnih, pixels"""


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int = 255) -> np.ndarray:
    """Counts, int64 (classes, classes): rows are the truth, columns the prediction.

    `truth` and `predicted`: integers of one shape, 0 to classes - 1; pixels whose truth is `ignored` do not count.
    """
    keep = truth != ignored
    pairs = truth[keep].astype(np.int64) * classes + predicted[keep].astype(np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


@dataclass(frozen=True)
class Tally:
    """What is counted of maps before anything is divided. Tallies of parts of a test set add up."""

    confusion: np.ndarray
    """int64 (C, C): rows are the truth"""
    boundary: np.ndarray
    """int64 (C, 4), by class: predicted boundary pixels, those of them near a true one, true ones, those of them near a
    predicted one; near: within BOUNDARY_TOLERANCE"""
    relaxed: np.ndarray
    """int64 (C, 4): the same of all pixels of the class, within RELAXATION"""

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.confusion + other.confusion, self.boundary + other.boundary, self.relaxed + other.relaxed)

    def to_json(self) -> dict[str, Any]:
        return {
            "confusion": self.confusion.tolist(),
            "boundary": self.boundary.tolist(),
            "relaxed": self.relaxed.tolist(),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> Tally:
        return Tally(*(np.array(value[key], np.int64) for key in ("confusion", "boundary", "relaxed")))


def empty_tally(classes: int) -> Tally:
    return Tally(*(np.zeros((classes, width), np.int64) for width in (classes, 4, 4)))


def pixel_tally(truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int = 255) -> Tally:
    """Of single pixels or tiles, which have no neighbours: the confusion alone."""
    nothing = empty_tally(classes)
    return Tally(confusion(truth, predicted, classes, ignored), nothing.boundary, nothing.relaxed)


def map_tally(truth: np.ndarray, predicted: np.ndarray, classes: int, ignored: int = 255) -> Tally:
    """Of a whole map, integers (H, W): the confusion and what lies near.

    Where the truth is `ignored` nothing is counted on either side, and a change of class from or to such a pixel is no
    boundary; so is the frame of the image.
    """
    known = truth != ignored
    boundary, relaxed = np.zeros((classes, 4), np.int64), np.zeros((classes, 4), np.int64)
    for number in range(classes):
        true, found = (truth == number) & known, (predicted == number) & known
        if not (true.any() or found.any()):
            continue
        relaxed[number] = _matched(found, true, RELAXATION)
        boundary[number] = _matched(_rim(found, known), _rim(true, known), BOUNDARY_TOLERANCE)
    return Tally(confusion(truth, predicted, classes, ignored), boundary, relaxed)


def _rim(inside: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Pixels of a class, bool (H, W), of which one of four neighbours is known and of another class."""
    other = np.pad(known & ~inside, 1)
    return inside & (other[:-2, 1:-1] | other[2:, 1:-1] | other[1:-1, :-2] | other[1:-1, 2:])


def _matched(found: np.ndarray, true: np.ndarray, reach: float) -> tuple[int, int, int, int]:
    """Pixels of each of two sets, and how many of them have one of the other within `reach`, centre to centre."""
    radius = int(reach)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = (y**2 + x**2 <= reach**2).astype(np.uint8)
    near_true = cv2.dilate(true.astype(np.uint8), disk).astype(bool)
    near_found = cv2.dilate(found.astype(np.uint8), disk).astype(bool)
    sets = (found, found & near_true, true, true & near_found)
    return tuple(int(np.count_nonzero(part)) for part in sets)  # type: ignore[return-value]


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
        miou=mean(iou),
        mean_f1=mean(f1),
        iou=tuple(iou.tolist()),
        f1=tuple(f1.tolist()),
        precision=tuple(precision.tolist()),
        recall=tuple(recall.tolist()),
    )


@dataclass(frozen=True)
class NearScores:
    """Precision, recall and F1 within a distance, float64 (C,) each, in 0..1; NaN for a class that the truth has
    nothing of; precision also where nothing is predicted, when F1 is 0."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def near_scores(counts: np.ndarray) -> NearScores:
    """The scores of pooled counts (C, 4), as `Tally.boundary` and `Tally.relaxed` hold them."""
    found, found_near, true, true_near = counts.astype(np.float64).T
    there = np.where(true > 0, 1.0, np.nan)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = there * found_near / found, true_near / true
        f1 = 2 * precision * recall / (precision + recall)
    # nothing near on either side: 0 / 0, of which the limit is 0
    return NearScores(precision, recall, np.where((true > 0) & (found_near + true_near == 0), 0.0, f1))


def mean(values: np.ndarray) -> float:
    """Of those that are numbers; NaN where none is."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
