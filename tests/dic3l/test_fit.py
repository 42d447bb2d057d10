"""Fitting learns what can be learned and nothing else, and a seed says all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score, log_loss
from torch import Tensor

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.backbone import random_backbone
from dic3l.evaluate.data import IGNORED
from dic3l.evaluate.fit import FitConfig, cosine, draw_batch, fit_segmenter
from dic3l.evaluate.segmenter import Segmenter, make_segmenter, segment

CPU = torch.device("cpu")
QUICK = FitConfig(steps=3, batch_size=2, crop=32)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Small convolutions are as quick on one thread, and many times quicker where other processes use the cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _squares(places: int, seed: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Bright squares on dark ground under noise, in images of unlike sizes, some smaller than a crop of 64."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for _ in range(places):
        label = np.zeros(rng.integers(56, 112, 2), np.uint8)
        for _ in range(3):
            side = rng.integers(20, 40)
            top, left = (rng.integers(length - side + 1) for length in label.shape)
            label[top : top + side, left : left + side] = 1
        images.append(np.clip(60 + 100 * label + rng.normal(0, 20, label.shape), 1, 255).astype(np.uint8)[None])
        labels.append(label)
    return images, labels


def _segmenter(kind: str = "segment-linear", classes: int = 2) -> Segmenter:
    return make_segmenter(kind, random_backbone("resnet18", 0), 1, "concat", classes, 0)


def _predict(segmenter: Segmenter, images: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([segment(segmenter, image, CPU).ravel() for image in images])


@pytest.mark.parametrize(("kind", "steps"), [("unet", 30), pytest.param("segment-linear", 50, marks=pytest.mark.slow)])
def test_squares_are_learned_from_random_weights(kind: str, steps: int) -> None:
    segmenter = _segmenter(kind)
    told: list[tuple[int, float]] = []
    config = FitConfig(steps=steps, batch_size=4, crop=64, lr=2e-3, frozen=False)
    losses = fit_segmenter(segmenter, *_squares(12, 0), config, 0, CPU, lambda step, loss: told.append((step, loss)))
    assert len(losses) == steps and told == list(enumerate(losses, start=1)) and not segmenter.training
    images, labels = _squares(6, 1)
    predicted, truth = _predict(segmenter, images) == 1, np.concatenate([label.ravel() for label in labels]) == 1
    assert (predicted & truth).sum() / (predicted | truth).sum() > 0.9


def test_shuffled_labels_score_at_chance() -> None:
    """Bright halves of images, turned by quarters. Swapped between neighbours, masks say nothing of brightness: what
    scores on new places then has seen their labels."""
    rng = np.random.default_rng(0)
    half = np.repeat([[0, 1]], 64, axis=0).repeat(32, axis=1).astype(np.uint8)
    labels = [np.rot90(half, turn).copy() for turn in range(12)]
    images = [rng.integers(1, 128, (1, 64, 64), dtype=np.uint8) + 120 * label for label in labels]
    config = FitConfig(steps=20, batch_size=4, crop=64, lr=1e-2)
    kappas = []
    for order in (range(8), [1, 0, 3, 2, 5, 4, 7, 6]):
        segmenter = _segmenter()
        fit_segmenter(segmenter, images[:8], [labels[i] for i in order], config, 0, CPU)
        truth = np.concatenate([label.ravel() for label in labels[8:]])
        kappas.append(cohen_kappa_score(truth, _predict(segmenter, images[8:])))
    assert kappas[0] > 0.7 and abs(kappas[1]) < 0.35, kappas


def _states_equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_equal_seeds_make_equal_weights_and_leave_the_global_generator_alone() -> None:
    data = _squares(4, 0)
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    states = []
    for seed in (0, 0, 1):
        segmenter = _segmenter("fcn")  # has dropout
        fit_segmenter(segmenter, *data, replace(QUICK, frozen=False), seed, CPU)
        states.append(segmenter.state_dict())
    assert torch.equal(torch.rand(1), expected)
    assert _states_equal(states[0], states[1]) and not _states_equal(states[0], states[2])


def test_a_frozen_backbone_is_the_same_afterwards() -> None:
    for frozen in (True, False):
        segmenter = _segmenter()
        before = {name: value.clone() for name, value in segmenter.state_dict().items()}
        fit_segmenter(segmenter, *_squares(3, 0), replace(QUICK, frozen=frozen), 0, CPU)
        after = segmenter.state_dict()
        same = {name: torch.equal(before[name], after[name]) for name in before}
        inside = [equal for name, equal in same.items() if name.startswith("backbone.")]
        assert all(inside) if frozen else not all(inside)
        assert not any(equal for name, equal in same.items() if name.startswith("decoder."))


@pytest.mark.parametrize("balanced", [False, True])
def test_the_loss_is_the_mean_over_labelled_pixels(balanced: bool) -> None:
    images, labels = _squares(3, 0)
    for label in labels:
        label[::3] = IGNORED
    segmenter = _segmenter()
    config = replace(QUICK, steps=1, balanced=balanced)
    codes, truth = draw_batch(images, labels, config, 7, 0)
    with torch.no_grad():
        odds = torch.softmax(segmenter(codes).double(), dim=1).movedim(1, -1)[truth != IGNORED].numpy()
    known = truth[truth != IGNORED].numpy()
    counts = np.bincount(np.concatenate([label[label != IGNORED] for label in labels]), minlength=2)
    weights = (counts.sum() / (2 * counts))[known] if balanced else np.ones(len(known))
    expected = log_loss(known, odds, sample_weight=weights, normalize=False) / len(known)
    (found,) = fit_segmenter(segmenter, images, labels, config, 7, CPU)
    assert found == pytest.approx(expected, rel=1e-4)


def test_crops_are_flipped_windows_of_image_and_label_together() -> None:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 200, (90, 70)).astype(np.uint8)
    image = np.stack([label, 255 - label])
    config = FitConfig(batch_size=16, crop=40)
    codes, truth = draw_batch([image], [label], config, 0, 0)
    assert codes.shape == (16, 2, 40, 40) and (codes[:, 0] == truth).all() and (codes[:, 1] == 255 - truth).all()
    windows = np.lib.stride_tricks.sliding_window_view(label, (40, 40))
    flips = set()
    for crop in truth.numpy():
        for axes in ((), (0,), (1,), (0, 1)):
            if (windows == np.flip(crop, axes)).all(axis=(2, 3)).any():
                flips.add(axes)
                break
        else:
            raise AssertionError("a crop is no window of the image")
    assert len(flips) == 4
    again, other = draw_batch([image], [label], config, 0, 0), draw_batch([image], [label], config, 0, 1)
    assert torch.equal(again[0], codes) and not torch.equal(other[0], codes)


def test_small_images_are_filled_up_and_large_ones_are_drawn_more_often() -> None:
    images = [np.full((1, 20, 24), 9, np.uint8), np.full((1, 80, 96), 5, np.uint8)]
    labels = [np.zeros((20, 24), np.uint8), np.ones((80, 96), np.uint8)]
    config = FitConfig(batch_size=32, crop=32)
    batches = [draw_batch(images, labels, config, 0, step) for step in range(8)]
    codes, truth = (torch.cat(parts) for parts in zip(*batches, strict=True))
    small = (truth == 0).any(dim=2).any(dim=1)
    assert 0 < small.sum() < 40  # a sixteenth of the area: 15 of 256
    assert (codes[small][:, 0, 20:] == 0).all() and (truth[small][:, 20:] == IGNORED).all()
    assert (truth[small][:, :20, :24] == 0).all() and (codes[~small] == 5).all()


def test_crops_without_labels_are_drawn_again() -> None:
    label = np.full((128, 128), IGNORED, np.uint8)
    label[40:88, 40:88] = 1
    codes = np.zeros((1, 128, 128), np.uint8)
    _, truth = draw_batch([codes], [label], FitConfig(batch_size=32, crop=32), 0, 0)
    assert (truth == 1).flatten(1).any(dim=1).all()


def test_the_rate_falls_as_a_cosine_to_zero() -> None:
    rates = [cosine(0.5, step, 100) for step in (0, 50, 100)]
    assert rates == pytest.approx([0.5, 0.25, 0.0])


def test_labels_and_settings_that_cannot_be_fitted_are_refused() -> None:
    images, labels = _squares(2, 0)
    with pytest.raises(Dic3lError, match=r"labels 0 to 1 and 255 \(ignored\) expected, 7 found"):
        fit_segmenter(_segmenter(), images, [np.full_like(label, 7) for label in labels], QUICK, 0, CPU)
    with pytest.raises(Dic3lError, match="no labelled pixel in 2 places"):
        fit_segmenter(_segmenter(), images, [np.full_like(label, IGNORED) for label in labels], QUICK, 0, CPU)
    with pytest.raises(Dic3lError, match=r"place 1: uint8 images \(1, H, W\)"):
        fit_segmenter(_segmenter(), [images[0], images[0]], labels, QUICK, 0, CPU)
    with pytest.raises(Dic3lError, match="2 and 1 found"):
        fit_segmenter(_segmenter(), images, labels[:1], QUICK, 0, CPU)
    with pytest.raises(Dic3lError, match="give a lower lr"):
        fit_segmenter(_segmenter(), images, labels, replace(QUICK, lr=1e30, steps=9), 0, CPU)
    with pytest.raises(ConfigError, match="batch_size: 2 or more"):
        FitConfig(batch_size=1)
