"""Tiles of one class: what is pooled, what is voted, what is fitted, and what no probe may know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from dic3l.evaluate.backbone import random_backbone
from dic3l.evaluate.classify import Features, classify_knn, classify_linear, code_statistics, pooled_features
from dic3l.evaluate.probe import PENALTIES

CPU = torch.device("cpu")


def _features(values: np.ndarray, labels: np.ndarray) -> Features:
    return Features(torch.from_numpy(values.astype(np.float32)), torch.from_numpy(labels.astype(np.int64)))


def _clouds(count: int, spread: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Three classes about three directions, six features."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, count)
    return 4 * np.eye(6)[2 * labels] + rng.normal(0, spread, (count, 6)) + 7, labels


def _linear(bank: Features, queries: torch.Tensor) -> np.ndarray:
    folds = torch.arange(len(bank.labels)) % 3
    return classify_linear(bank, folds, queries, int(bank.labels.max()) + 1, False)[0]


def _knn(bank: Features, queries: torch.Tensor) -> np.ndarray:
    return classify_knn(bank, queries, int(bank.labels.max()) + 1)


BOTH = pytest.mark.parametrize("classify", [_linear, _knn])
Classify = Callable[[Features, torch.Tensor], np.ndarray]


@BOTH
def test_clouds_that_lie_apart_are_told_apart(classify: Classify) -> None:
    bank, (queries, truth) = _features(*_clouds(300, 0.5, 0)), _clouds(200, 0.5, 1)
    np.testing.assert_array_equal(classify(bank, torch.from_numpy(queries).float()), truth)


@BOTH
def test_shuffled_labels_are_guessed_at_chance(classify: Classify) -> None:
    """And the control: with the queries among the bank, kNN knows labels that mean nothing."""
    (values, labels), (queries, truth) = _clouds(600, 1.0, 0), _clouds(900, 1.0, 1)
    rng = np.random.default_rng(2)
    shuffled, asked = rng.permutation(labels), rng.permutation(truth)
    found = classify(_features(values, shuffled), torch.from_numpy(queries).float())
    assert (found == asked).mean() == pytest.approx(1 / 3, abs=4 * np.sqrt(2 / 9 / 900))
    if classify is _knn:
        leaky = _features(np.concatenate([values, queries]), np.concatenate([shuffled, asked]))
        assert (classify(leaky, torch.from_numpy(queries).float()) == asked).mean() > 0.5


def test_the_linear_probe_is_scikit_learns_logistic_regression() -> None:
    (values, labels), (queries, _) = _clouds(300, 2.5, 0), _clouds(500, 2.5, 1)
    found, penalty = classify_linear(
        _features(values, labels), torch.arange(300) % 3, torch.from_numpy(queries).float(), 3, False
    )
    assert penalty in PENALTIES
    mean, std = values.mean(axis=0), values.std(axis=0, ddof=1)
    reference = LogisticRegression(C=1 / (300 * penalty), tol=1e-10, max_iter=5000).fit((values - mean) / std, labels)
    assert (found == reference.predict((queries - mean) / std)).mean() > 0.995


def test_the_vote_is_that_of_the_nearest_by_cosine() -> None:
    (values, labels), (queries, _) = _clouds(400, 2.0, 0), _clouds(300, 2.0, 1)
    found = classify_knn(_features(values, labels), torch.from_numpy(queries).float(), 3)
    mean, std = values.mean(axis=0), values.std(axis=0)

    def weigh(distances: np.ndarray) -> np.ndarray:
        return np.exp((1 - distances) / 0.07)

    reference = KNeighborsClassifier(20, weights=weigh, metric="cosine").fit((values - mean) / std, labels)
    assert (found == reference.predict((queries - mean) / std)).mean() > 0.99


def test_pooled_is_the_mean_of_stage_4_of_each_image_in_order_whatever_the_sizes() -> None:
    rng = np.random.default_rng(0)
    sizes = [(64, 64), (64, 64), (96, 64), (64, 64)]
    tiles = [rng.integers(0, 256, (2, *size), dtype=np.uint8) for size in sizes]
    backbone = random_backbone("resnet18", 0)
    found = pooled_features(backbone, tiles, CPU)
    assert found.shape == (4, 2 * 512)
    for row, tile in zip(found, tiles, strict=True):
        with torch.no_grad():
            alone = [backbone(torch.from_numpy(image[None]))[-1].mean((2, 3))[0] for image in tile]
        torch.testing.assert_close(row, torch.cat(alone), rtol=1e-3, atol=1e-4)


def test_code_statistics_are_mean_and_spread_of_window_means() -> None:
    tiles = [np.random.default_rng(0).integers(0, 256, (2, 20, 24), dtype=np.uint8)]
    found = code_statistics(tiles, (1, 3), CPU)
    assert found.shape == (1, 6)
    first = tiles[0][0].astype(np.float64) / 255
    assert found[0, 0].item() == pytest.approx(first.mean(), abs=1e-6)
    assert found[0, 1].item() == pytest.approx(first.std(), abs=1e-6)
    assert 0.2 < found[0, 2].item() / first.std() < 0.5  # of 9 pixels: a third
