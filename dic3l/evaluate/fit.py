"""Fitting a segmenter to labelled places: random crops and flips, AdamW, cosine to zero, cross-entropy.

Deterministic: what is drawn at a step is a function of (seed, step), dropout comes from a generator of its own; on one
machine and number of threads, equal seeds make equal weights to the bit on a CPU. Flips are left-right and top-bottom:
each is another look of the radar, a quarter turn is none (docs/method.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dic3l.errors import ConfigError, Dic3lError
from dic3l.evaluate.data import IGNORED
from dic3l.evaluate.segmenter import Segmenter

_STREAM = 2
"""of the random numbers of this module, beside the seed"""

_TRIES = 10
"""crops that are drawn until one has a labelled pixel"""


@dataclass(frozen=True)
class FitConfig:
    """How a segmenter is fitted; the same for all that are compared."""

    steps: int = 1000
    batch_size: int = 8
    """crops a step; 2 or more, for BatchNorm of pooled features has one value an image"""
    crop: int = 128
    """pixels a side; smaller images are filled up with code 0, and that is not trained on"""
    lr: float = 1e-3
    """of the first step; falls as a cosine to zero"""
    weight_decay: float = 0.01
    """of AdamW, not of biases and normalisation"""
    frozen: bool = True
    """the backbone stays as it is, its BatchNorm statistics too; else all is trained, and BatchNorm uses the batch"""
    balanced: bool = False
    """each class weighs as much in the loss: pixels by 1 / (classes x the share of their class)"""

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 2), ("crop", 32)):
            if getattr(self, name) < least:
                raise ConfigError(f"fit.{name}: {least} or more expected, {getattr(self, name)} found")
        if self.lr <= 0 or self.weight_decay < 0:
            raise ConfigError(
                f"fit: lr above 0 and weight_decay of 0 or more expected, {self.lr}, {self.weight_decay} found"
            )


Progress = Callable[[int, float], None]
"""is told steps done and the loss of the last"""


def fit_segmenter(
    segmenter: Segmenter,
    images: Sequence[np.ndarray],
    labels: Sequence[np.ndarray],
    config: FitConfig,
    seed: int,
    device: torch.device,
    progress: Progress | None = None,
) -> list[float]:
    """Train `segmenter` in place, on `device`; the loss of each step. It ends in evaluation mode.

    images[i]: uint8 (K, H, W), of unlike sizes if so; labels[i]: uint8 (H, W), classes or IGNORED. Places are drawn in
    proportion to their area. The loss is the mean cross-entropy over the labelled pixels of a batch. Dic3lError where
    labels are out of range, none is there, or the loss is no longer finite.
    """
    counts = _class_counts(segmenter, images, labels)
    weight = None
    if config.balanced:
        weight = torch.from_numpy(counts.sum() / (segmenter.classes * np.maximum(counts, 1))).float().to(device)
    segmenter.to(device)
    segmenter.backbone.set_trainable(not config.frozen)
    optimiser = _optimiser(segmenter, config)
    losses: list[float] = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        segmenter.train()
        for step in range(config.steps):
            for group in optimiser.param_groups:
                group["lr"] = cosine(config.lr, step, config.steps)
            codes, truth = (part.to(device) for part in draw_batch(images, labels, config, seed, step))
            loss = _loss(segmenter(codes), truth, weight)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
            if not math.isfinite(losses[-1]):
                raise Dic3lError(f"fit of {segmenter.kind}: the loss of step {step} is {losses[-1]}; give a lower lr")
            if progress is not None:
                progress(step + 1, losses[-1])
    segmenter.eval()
    return losses


def cosine(lr: float, step: int, steps: int) -> float:
    """Learning rate of a step: from `lr` at step 0 to zero after the last."""
    return lr * (1 + math.cos(math.pi * step / steps)) / 2


def draw_batch(
    images: Sequence[np.ndarray], labels: Sequence[np.ndarray], config: FitConfig, seed: int, step: int
) -> tuple[Tensor, Tensor]:
    """Crops of a step: codes uint8 (N, K, crop, crop), labels int64 (N, crop, crop); a function of seed and step."""
    rng = np.random.default_rng([seed, _STREAM, step])
    area = np.array([one.size for one in labels], np.float64)
    codes = np.zeros((config.batch_size, len(images[0]), config.crop, config.crop), np.uint8)
    truth = np.full((config.batch_size, config.crop, config.crop), IGNORED, np.uint8)
    for code, label in zip(codes, truth, strict=True):
        place, rows, cols = _draw_crop(labels, area / area.sum(), config.crop, rng)
        flip = tuple(axis for axis in (-2, -1) if rng.random() < 0.5)
        image, mask = np.flip(images[place][:, rows, cols], flip), np.flip(labels[place][rows, cols], flip)
        code[:, : mask.shape[0], : mask.shape[1]] = image
        label[: mask.shape[0], : mask.shape[1]] = mask
    return torch.from_numpy(codes), torch.from_numpy(truth.astype(np.int64))


def _draw_crop(
    labels: Sequence[np.ndarray], shares: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[int, slice, slice]:
    """A place, and rows and columns of it: the first of up to `_TRIES` draws with a labelled pixel, else the last."""
    for _ in range(_TRIES - 1):
        place, rows, cols = _draw_window(labels, shares, side, rng)
        if (labels[place][rows, cols] != IGNORED).any():
            return place, rows, cols
    return _draw_window(labels, shares, side, rng)


def _draw_window(
    labels: Sequence[np.ndarray], shares: np.ndarray, side: int, rng: np.random.Generator
) -> tuple[int, slice, slice]:
    place = int(rng.choice(len(labels), p=shares))
    starts = [int(rng.integers(max(length - side, 0) + 1)) for length in labels[place].shape]
    rows, cols = (slice(start, start + side) for start in starts)
    return place, rows, cols


def _loss(logits: Tensor, truth: Tensor, weight: Tensor | None) -> Tensor:
    """Divided by the labelled pixels, also with weights: as in the linear probe, where all pixels are one batch."""
    total = F.cross_entropy(logits, truth, weight, ignore_index=IGNORED, reduction="sum")
    return total / (truth != IGNORED).sum().clamp(min=1)


def _optimiser(segmenter: Segmenter, config: FitConfig) -> torch.optim.Optimizer:
    trained = [parameter for parameter in segmenter.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr)


def _class_counts(segmenter: Segmenter, images: Sequence[np.ndarray], labels: Sequence[np.ndarray]) -> np.ndarray:
    """Labelled pixels of each class, int64 (classes,); Dic3lError where images and labels are not what is expected."""
    if len(images) != len(labels):
        raise Dic3lError(f"fit: as many labels as images expected, {len(images)} and {len(labels)} found")
    counts = np.zeros(IGNORED + 1, np.int64)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        if image.shape != (segmenter.images, *label.shape) or image.dtype != np.uint8 or label.dtype != np.uint8:
            raise Dic3lError(
                f"fit: place {index}: uint8 images ({segmenter.images}, H, W) and labels (H, W) expected, "
                f"{image.dtype} {image.shape} and {label.dtype} {label.shape} found"
            )
        counts += np.bincount(label.ravel(), minlength=len(counts))
    strange = np.nonzero(counts[segmenter.classes : IGNORED])[0] + segmenter.classes
    if len(strange):
        raise Dic3lError(
            f"fit: labels 0 to {segmenter.classes - 1} and {IGNORED} (ignored) expected, {strange[0]} found"
        )
    if not counts[: segmenter.classes].any():
        raise Dic3lError(f"fit: no labelled pixel in {len(labels)} places; nothing can be learned")
    return counts[: segmenter.classes]
