"""The probe is a logistic regression, and what it is fitted to is what it is tested on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates
from sklearn.linear_model import LogisticRegression

from dic3l.evaluate.backbone import random_backbone
from dic3l.evaluate.probe import (
    FeatureMap,
    Probe,
    backbone_features,
    features_at,
    fit_probe,
    interpolation,
    pixel_features,
    sample_pixels,
)

CPU = torch.device("cpu")


@given(
    steps=st.integers(1, 40),
    stride=st.sampled_from([1, 4, 8, 16, 32]),
    positions=st.lists(st.integers(0, 1300), min_size=1, max_size=20),
)
def test_interpolation_is_bilinear_and_constant_beyond_the_end(steps: int, stride: int, positions: list[int]) -> None:
    values = np.random.default_rng(steps).normal(size=steps)
    found = interpolation(np.array(positions), steps, stride) @ values
    expected = map_coordinates(values, [np.array(positions) / stride], order=1, mode="nearest")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def _maps(height: int, width: int) -> list[FeatureMap]:
    rng = np.random.default_rng(0)
    return [
        FeatureMap(torch.from_numpy(rng.normal(size=(5, -(-height // s), -(-width // s))).astype(np.float32)), s)
        for s in (1, 4, 8, 32)
    ]


def test_prediction_is_the_linear_layer_on_the_features_of_each_pixel() -> None:
    height, width = 70, 50
    maps = _maps(height, width)
    rng = np.random.default_rng(1)
    weight = torch.from_numpy(rng.normal(size=(3, 20)).astype(np.float32))
    bias = torch.from_numpy(rng.normal(size=3).astype(np.float32))
    rows, cols = (grid.ravel() for grid in np.mgrid[:height, :width])
    logits = features_at(maps, rows, cols) @ weight.T + bias
    expected = logits.argmax(dim=1).reshape(height, width).numpy()
    assert (Probe(weight, bias, 0.0).predict(maps, height, width) == expected).mean() > 0.999  # ties by rounding


def test_fit_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 6)).astype(np.float32) * [1, 5, 0.1, 1, 2, 1] + 3
    x = x.astype(np.float32)
    y = (x[:, 0] + 0.3 * x[:, 1] + rng.normal(size=600) > 5).astype(np.int64) + (x[:, 4] > 4)
    penalty = 0.01
    probe = fit_probe(
        torch.from_numpy(x), torch.from_numpy(y), torch.zeros(600, dtype=torch.int64), 3, False, [penalty]
    )
    standard = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
    reference = LogisticRegression(C=1 / (600 * penalty), tol=1e-10, max_iter=5000).fit(standard, y)
    expected = reference.predict_log_proba(standard)
    found = torch.log_softmax(torch.from_numpy(x) @ probe.weight.T + probe.bias, dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=5e-3)


def test_balanced_weights_agree_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 3)).astype(np.float32)
    y = (x[:, 0] + rng.normal(size=500) > 1.8).astype(np.int64)
    probe = fit_probe(torch.from_numpy(x), torch.from_numpy(y), torch.zeros(500, dtype=torch.int64), 2, True, [1e-4])
    balanced = LogisticRegression(C=1e6, class_weight="balanced", tol=1e-10, max_iter=5000).fit(x, y)
    found = (torch.from_numpy(x) @ probe.weight.T + probe.bias).argmax(dim=1).numpy()
    assert (found == balanced.predict(x)).mean() > 0.99


def test_the_penalty_is_chosen_on_folds_that_were_not_fitted() -> None:
    """40 features of noise that tell the folds apart and nothing else: only a strong penalty survives."""
    rng = np.random.default_rng(0)
    folds = np.repeat(np.arange(3), 40)
    y = rng.integers(0, 2, 120)
    noise = rng.normal(size=(120, 100))
    x = np.concatenate([noise, (y + 0.3 * rng.normal(size=120))[:, None]], axis=1).astype(np.float32)
    probe = fit_probe(torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(folds), 2, False, [1.0, 1e-1, 1e-6])
    assert probe.penalty > 1e-6


def test_sampled_pixels_are_labelled_distinct_and_a_function_of_the_generator() -> None:
    labels = np.full((30, 30), 255, np.uint8)
    labels[5:10, 3:20] = 1
    rows, cols = sample_pixels(labels, 50, np.random.default_rng(0))
    assert (labels[rows, cols] == 1).all() and len(set(zip(rows, cols, strict=True))) == 50
    again = sample_pixels(labels, 50, np.random.default_rng(0))
    np.testing.assert_array_equal(rows, again[0])
    assert len(sample_pixels(labels, 1000, np.random.default_rng(0))[0]) == 85


def test_pixel_features_are_window_means() -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 20, 24), dtype=np.uint8)
    (feature_map,) = pixel_features((1, 5), "concat", CPU)(images)
    assert feature_map.stride == 1 and feature_map.values.shape == (2, 20, 24)
    np.testing.assert_allclose(feature_map.values[0], images[0] / 255, atol=1e-6)
    assert feature_map.values[1, 10, 12].item() == pytest.approx(images[0, 8:13, 10:15].mean() / 255, abs=1e-6)


def test_change_adds_the_absolute_difference() -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64), dtype=np.uint8)
    backbone = random_backbone("resnet18", 0)
    separate = [[m.values for m in backbone_features(backbone, "concat", CPU)(images[i : i + 1])] for i in range(2)]
    for stage, feature_map in enumerate(backbone_features(backbone, "change", CPU)(images)):
        first, second = separate[0][stage], separate[1][stage]
        expected = torch.cat([first, second, (first - second).abs()])
        torch.testing.assert_close(feature_map.values, expected, rtol=1e-3, atol=1e-4)
