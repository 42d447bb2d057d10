"""One probe on one contender in one draw: fit, test, count.

Maps: `segment-linear` and `knn` read frozen features; the decoders, and `segment-linear` when the backbone is
fine-tuned, are trained by steps. Tiles of one class: `knn` and `linear` on pooled features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np
import torch

from dic3l.evaluate.classify import Features, classify_knn, classify_linear, code_statistics, pooled_features
from dic3l.evaluate.fit import FitConfig, fit_segmenter
from dic3l.evaluate.metrics import Tally, empty_tally, map_tally, pixel_tally
from dic3l.evaluate.probe import (
    PENALTIES,
    Extractor,
    FeatureMap,
    Fuse,
    backbone_features,
    features_at,
    fit_probe,
    pixel_features,
)
from dic3l.evaluate.segmenter import Segmenter, linear_segmenter, make_segmenter, segment
from dic3l.knn import knn_vote
from pipelines.contenders import Contender, ready_backbone
from pipelines.draw import Fitted, Tested

Kind = Literal[
    "knn", "linear", "segment-linear", "fcn", "upernet", "unet", "pspnet", "deeplabv3plus", "danet", "farseg"
]
KINDS: tuple[Kind, ...] = get_args(Kind)
DECODERS: tuple[Kind, ...] = KINDS[3:]
"""trained by steps, on a network's maps only"""
OF_TILES: tuple[Kind, ...] = ("knn", "linear")
OF_MAPS: tuple[Kind, ...] = ("knn", *KINDS[2:])
KNN_BANK = 5_000
"""fitted pixels that vote, at most"""


@dataclass(frozen=True)
class Setting:
    """What all fits of an evaluation share."""

    tiles: bool
    """whether it is tiles of one class that are classified, not maps"""
    classes: int
    fuse: Fuse
    balanced: bool
    finetune: bool
    fit: FitConfig
    device: torch.device


@dataclass(frozen=True)
class Outcome:
    """What came of one fit."""

    tally: Tally
    features: int | None
    """channels that a linear probe or kNN reads"""
    knn: Tally | None = None
    """of kNN on the same features, beside `segment-linear`"""
    penalty: float | None = None
    loss: float | None = None
    """of the last steps, where there were steps"""
    maps: list[np.ndarray] = field(default_factory=list)
    """uint8 (H, W), by test sample: predicted classes; none of kNN and tiles"""
    segmenter: Segmenter | None = None
    """none of kNN, tiles and pixel values"""


def stepwise(kind: Kind, setting: Setting) -> bool:
    """Whether a probe is trained by steps on a segmenter."""
    return kind in DECODERS or (kind == "segment-linear" and setting.finetune)


def fits(kind: Kind, contender: Contender, setting: Setting) -> bool:
    """Whether a contender can have this probe: a decoder needs the maps of a network."""
    return contender.backbone is not None or not stepwise(kind, setting)


def run_probe(kind: Kind, contender: Contender, fitted: Fitted, tested: Tested, setting: Setting, seed: int) -> Outcome:
    """Fit and test; the same outcome for the same arguments on one machine."""
    if setting.tiles:
        return _tiles(kind, contender, fitted, tested, setting, seed)
    if stepwise(kind, setting):
        return _decoder(kind, contender, fitted, tested, setting, seed)
    return _frozen(kind, contender, fitted, tested, setting, seed)


def majority(fitted: Fitted, tested: Tested, setting: Setting) -> Tally:
    """The baseline of always saying the most frequent class of what is fitted."""
    most = int(np.bincount(fitted.pixel_labels, minlength=setting.classes).argmax())
    count = pixel_tally if setting.tiles else map_tally
    tally = empty_tally(setting.classes)
    for sample in tested.samples:
        tally += count(sample.labels, np.full_like(sample.labels, most), setting.classes)
    return tally


def _frozen(kind: Kind, contender: Contender, fitted: Fitted, tested: Tested, setting: Setting, seed: int) -> Outcome:
    """The linear probe and kNN on the features of pixels; kNN alone where it is the probe."""
    segmenter = backbone = None
    if contender.backbone is None:
        extract: Extractor = pixel_features(contender.windows, setting.fuse, setting.device)
    else:
        backbone = ready_backbone(contender.backbone, fitted.images, seed, setting.device)
        extract = backbone_features(backbone, setting.fuse, setting.device)
    parts = [features_at(extract(images), *at) for images, at in zip(fitted.images, fitted.pixels, strict=True)]
    features = torch.cat(parts)
    labels = torch.from_numpy(fitted.pixel_labels).to(setting.device)
    vote = _pixel_vote(features, labels, setting.classes)
    probe = None
    if kind == "segment-linear":
        folds = torch.from_numpy(fitted.pixel_folds).to(setting.device)
        probe = fit_probe(features, labels, folds, setting.classes, setting.balanced, PENALTIES)
        segmenter = None if backbone is None else linear_segmenter(backbone, setting.fuse, probe)

    mapped, voted, predictions = empty_tally(setting.classes), empty_tally(setting.classes), []
    for sample, at in zip(tested.samples, tested.pixels, strict=True):
        maps = extract(sample.images)
        if probe is not None:
            predictions.append(probe.predict(maps, *sample.labels.shape))
            mapped += map_tally(sample.labels, predictions[-1], setting.classes)
        if len(at[0]):
            voted += pixel_tally(sample.labels[at], vote(maps, *at), setting.classes)
    if probe is None:
        return Outcome(voted, features.shape[1])
    return Outcome(mapped, features.shape[1], voted, probe.penalty, None, predictions, segmenter)


def _pixel_vote(
    features: torch.Tensor, labels: torch.Tensor, classes: int
) -> Callable[[list[FeatureMap], np.ndarray, np.ndarray], np.ndarray]:
    """kNN among fitted pixels: (maps of a place, rows, columns) -> classes, int64 (n,)."""
    mean, std = features.mean(dim=0), features.std(dim=0).clamp(min=1e-6)
    some = slice(None, None, -(-len(features) // KNN_BANK))
    bank, bank_labels = (features[some] - mean) / std, labels[some]

    def vote(maps: list[FeatureMap], rows: np.ndarray, cols: np.ndarray) -> np.ndarray:
        queries = (features_at(maps, rows, cols) - mean) / std
        return knn_vote(bank, bank_labels, queries, classes).cpu().numpy()

    return vote


def _decoder(kind: Kind, contender: Contender, fitted: Fitted, tested: Tested, setting: Setting, seed: int) -> Outcome:
    assert contender.backbone is not None  # `fits` said so
    backbone = ready_backbone(contender.backbone, fitted.images, seed, setting.device)
    count = len(fitted.images[0])
    segmenter = make_segmenter(kind, backbone, count, setting.fuse, setting.classes, seed).to(setting.device)
    losses = fit_segmenter(segmenter, fitted.images, fitted.labels, setting.fit, seed, setting.device)
    tally, predictions = empty_tally(setting.classes), []
    for sample in tested.samples:
        predictions.append(segment(segmenter, sample.images, setting.device))
        tally += map_tally(sample.labels, predictions[-1], setting.classes)
    loss = float(np.mean(losses[-max(1, len(losses) // 10) :]))
    return Outcome(tally, None, loss=loss, maps=predictions, segmenter=segmenter)


def _tiles(kind: Kind, contender: Contender, fitted: Fitted, tested: Tested, setting: Setting, seed: int) -> Outcome:
    if contender.backbone is None:

        def pooled(tiles: list[np.ndarray]) -> torch.Tensor:
            return code_statistics(tiles, contender.windows, setting.device)
    else:
        backbone = ready_backbone(contender.backbone, fitted.images, seed, setting.device)

        def pooled(tiles: list[np.ndarray]) -> torch.Tensor:
            return pooled_features(backbone, tiles, setting.device)

    bank = Features(pooled(fitted.images), torch.from_numpy(fitted.pixel_labels).to(setting.device))
    queries = pooled([sample.images for sample in tested.samples])
    penalty = None
    if kind == "knn":
        found = classify_knn(bank, queries, setting.classes)
    else:
        folds = torch.from_numpy(fitted.folds).to(setting.device)
        found, penalty = classify_linear(bank, folds, queries, setting.classes, setting.balanced)
    truth = np.concatenate([sample.labels.ravel() for sample in tested.samples])
    return Outcome(pixel_tally(truth, found, setting.classes), bank.values.shape[1], penalty=penalty)
