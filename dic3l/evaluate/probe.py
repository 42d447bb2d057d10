"""A linear segmentation probe: multinomial logistic regression, pixel by pixel, on frozen multi-scale features.

The features of a pixel are those of each map, interpolated bilinearly at the pixel's place ("hypercolumn"). Since
interpolation and the linear layer commute, a map is first projected to the classes at its own scale and then
interpolated; training uses the same interpolation at sampled pixels. Everything is deterministic: sampled pixels
are a function of a seed, the fit is full-batch L-BFGS from zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dic3l.evaluate.backbone import Backbone
from dic3l.evaluate.data import IGNORED
from dic3l.evaluate.metrics import confusion, scores

PENALTIES = (1e0, 1e-1, 1e-2, 1e-4)
"""strengths of the L2 penalty tried, strongest first"""

_ITERATIONS = 60
"""of L-BFGS in the final fit; a third where a penalty is tried, each from where the stronger one ended"""

Fuse = Literal["concat", "change"]
"""How the K images of a place become one set of features: concatenated; or, for a pair, with |first - second|."""


@dataclass(frozen=True)
class FeatureMap:
    """One scale of the features of one place."""

    values: Tensor
    """float32 (C, h, w)"""
    stride: int
    """pixels from one value to the next"""
    centre: float = 0.0
    """value i of an axis belongs to the pixel centre + stride * i"""


Extractor = Callable[[np.ndarray], list[FeatureMap]]
"""uint8 images (K, H, W) of one place -> its feature maps"""


def backbone_features(backbone: Backbone, fuse: Fuse, device: torch.device) -> Extractor:
    """The four stages of a backbone, for each image of a place, fused.

    In a torchvision ResNet the receptive field of step i of a stage of stride s is centred on pixel s i, not on the
    middle of the s x s cell: so they are placed there (at stage 4 the difference is 15.5 pixels); in other networks,
    where `Backbone.centres` says.
    """

    @torch.no_grad()
    def extract(images: np.ndarray) -> list[FeatureMap]:
        stages = backbone(torch.from_numpy(images).to(device))
        scales = zip(stages, backbone.strides, backbone.centres, strict=True)
        return [FeatureMap(_fuse(stage.float(), fuse), stride, centre) for stage, stride, centre in scales]

    return extract


def pixel_features(windows: Sequence[int], fuse: Fuse, device: torch.device) -> Extractor:
    """The baseline without a network: the mean code in windows of these sides (1: the pixel itself)."""

    def extract(images: np.ndarray) -> list[FeatureMap]:
        scaled = images.astype(np.float32) / 255
        means = np.stack([[cv2.blur(image, (side, side)) for side in windows] for image in scaled])
        return [FeatureMap(_fuse(torch.from_numpy(means).to(device), fuse), 1)]

    return extract


def _fuse(features: Tensor, fuse: Fuse) -> Tensor:
    """(K, C, h, w) -> (K C, h, w), or (3 C, h, w) for `change`."""
    if fuse == "change":
        first, second = features
        return torch.cat([first, second, (first - second).abs()])
    return features.flatten(0, 1)


def interpolation(positions: np.ndarray, steps: int, stride: int) -> np.ndarray:
    """Weights, float32 (len(positions), steps), of the bilinear interpolation of `steps` values at pixels 0,
    stride, 2 stride, ... at pixel positions; beyond the last value it is constant."""
    where = np.clip(np.asarray(positions, np.float64) / stride, 0, steps - 1)
    low = np.minimum(where.astype(np.int64), max(steps - 2, 0))
    weights = np.zeros((len(where), steps), np.float32)
    row = np.arange(len(where))
    weights[row, np.minimum(low + 1, steps - 1)] = where - low
    weights[row, low] += (1 - (where - low)).astype(np.float32)
    return weights


def features_at(maps: Sequence[FeatureMap], rows: np.ndarray, cols: np.ndarray) -> Tensor:
    """Features float32 (n, C of all maps) of the pixels at (rows, cols)."""
    parts = []
    for feature_map in maps:
        values = feature_map.values
        down, right = (
            torch.from_numpy(interpolation(at - feature_map.centre, steps, feature_map.stride)).to(values.device)
            for at, steps in zip((rows, cols), values.shape[1:], strict=True)
        )
        parts.append(torch.einsum("nh,chw,nw->nc", down, values, right))
    return torch.cat(parts, dim=1)


def sample_pixels(labels: np.ndarray, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Rows and columns of up to `count` labelled pixels of an image, drawn evenly without repetition."""
    rows, cols = np.nonzero(labels != IGNORED)
    chosen = np.sort(rng.permutation(rows.size)[:count])
    return rows[chosen], cols[chosen]


@dataclass(frozen=True)
class Probe:
    """A fitted probe: logits = weight @ features + bias, for features as extracted (standardisation folded in)."""

    weight: Tensor
    """float32 (classes, C)"""
    bias: Tensor
    """float32 (classes,)"""
    penalty: float

    def predict(self, maps: Sequence[FeatureMap], height: int, width: int) -> np.ndarray:
        """The most probable class of each pixel, uint8 (height, width)."""
        logits = self.bias[:, None, None].expand(-1, height, width).clone()
        start = 0
        for feature_map in maps:
            values = feature_map.values
            part = self.weight[:, start : start + len(values)]
            start += len(values)
            projected = torch.einsum("kc,chw->khw", part, values)
            if feature_map.stride == 1:
                logits += projected
                continue
            down, right = (
                torch.from_numpy(interpolation(np.arange(pixels) - feature_map.centre, steps, feature_map.stride))
                for pixels, steps in zip((height, width), values.shape[1:], strict=True)
            )
            logits += down.to(values.device) @ projected @ right.to(values.device).T
        return logits.argmax(dim=0).to(torch.uint8).cpu().numpy()


def fit_probe(
    features: Tensor, labels: Tensor, folds: Tensor, classes: int, balanced: bool, penalties: Sequence[float]
) -> Probe:
    """Fit on features (n, C) and labels int64 (n,); the penalty is chosen by cross-validation over `folds`.

    The loss is the mean cross-entropy, each class weighted by 1 / its share where `balanced`, plus penalty / 2 times
    the squared norm of the weights of standardised features. `folds`: int64 (n,), the fold of each row; rows of one
    place share one. Chosen is the penalty with the best mIoU over the predictions of all folds, each made without
    it; the stronger of equals. With a single fold it is the first of `penalties`, which go from strong to weak.
    """
    mean, std = features.mean(dim=0), features.std(dim=0)
    std = torch.where(std > 1e-6, std, torch.ones_like(std))
    x = (features - mean) / std
    numbers = torch.unique(folds).tolist()
    chosen = 0
    if len(penalties) > 1 and len(numbers) > 1:
        matrices = np.zeros((len(penalties), classes, classes), np.int64)
        for fold in numbers:
            inner, outer = folds != fold, folds == fold
            inner_x, inner_y, outer_x, truth = x[inner], labels[inner], x[outer], labels[outer].cpu().numpy()
            start = None
            for matrix, candidate in zip(matrices, penalties, strict=True):
                start = _fit(inner_x, inner_y, classes, balanced, candidate, start, _ITERATIONS // 3)
                matrix += confusion(truth, (outer_x @ start[0].T + start[1]).argmax(dim=1).cpu().numpy(), classes)
        chosen = int(np.argmax([scores(matrix).miou for matrix in matrices]))
    weight, bias = _fit(x, labels, classes, balanced, penalties[chosen], None, _ITERATIONS)
    weight = weight / std
    return Probe(weight, bias - weight @ mean, penalties[chosen])


def _fit(
    x: Tensor,
    y: Tensor,
    classes: int,
    balanced: bool,
    penalty: float,
    start: tuple[Tensor, Tensor] | None,
    iterations: int,
) -> tuple[Tensor, Tensor]:
    weight = torch.zeros(classes, x.shape[1], device=x.device) if start is None else start[0].clone()
    bias = torch.zeros(classes, device=x.device) if start is None else start[1].clone()
    weight.requires_grad_()
    bias.requires_grad_()
    counts = torch.bincount(y, minlength=classes).clamp(min=1).float()
    class_weight = len(y) / (classes * counts) if balanced else None
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(x @ weight.T + bias, y, class_weight) + penalty / 2 * weight.square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return weight.detach(), bias.detach()
