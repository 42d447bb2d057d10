"""Which class a whole tile is of: kNN and a linear probe on pooled features of a frozen network.

Pooled is stage 4, as the global branch of the pre-training does it. The linear probe is the logistic regression of
`dic3l.evaluate.probe`, its penalty chosen by cross-validation over blocks of tiles; kNN is that of Wu et al., 2018
(`dic3l.knn`), on standardised features, and fits nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from dic3l.evaluate.backbone import Backbone
from dic3l.evaluate.probe import PENALTIES, fit_probe
from dic3l.knn import knn_vote

_BATCH = 32


@dataclass(frozen=True)
class Features:
    """Tiles as a probe sees them."""

    values: Tensor
    """float32 (n, D)"""
    labels: Tensor
    """int64 (n,): the class of each"""


@torch.no_grad()
def pooled_features(backbone: Backbone, tiles: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """Mean of stage 4 of each image of each tile, side by side: float32 (n, K C), for uint8 tiles (K, H, W)."""
    parts: list[Tensor] = []
    start = 0
    while start < len(tiles):
        stop = start + 1
        while stop < len(tiles) and stop - start < _BATCH and tiles[stop].shape == tiles[start].shape:
            stop += 1
        batch = torch.from_numpy(np.stack(tiles[start:stop])).to(device)
        pooled = backbone(batch.flatten(0, 1))[-1].float().mean((2, 3))
        parts.append(pooled.reshape(len(batch), -1))
        start = stop
    return torch.cat(parts)


def code_statistics(tiles: Sequence[np.ndarray], windows: Sequence[int], device: torch.device) -> Tensor:
    """The baseline without a network: mean code of each image, and standard deviation of its means in windows of
    these sides (1: of its pixels), side by side: float32 (n, K (1 + windows)), codes / 255."""

    def of(image: np.ndarray) -> list[float]:
        scaled = image.astype(np.float32) / 255
        return [float(scaled.mean()), *(float(cv2.blur(scaled, (side, side)).std()) for side in windows)]

    values = [[value for image in tile for value in of(image)] for tile in tiles]
    return torch.tensor(values, dtype=torch.float32, device=device)


def classify_linear(
    bank: Features, folds: Tensor, queries: Tensor, classes: int, balanced: bool
) -> tuple[np.ndarray, float]:
    """The class of each query, int64 (m,), by logistic regression on `bank`, and the penalty that was chosen.

    queries: float32 (m, D). folds: int64 (n,), the cross-validation fold of each tile of the bank.
    """
    probe = fit_probe(bank.values, bank.labels, folds, classes, balanced, PENALTIES)
    logits = queries @ probe.weight.T + probe.bias
    return logits.argmax(dim=1).cpu().numpy(), probe.penalty


def classify_knn(bank: Features, queries: Tensor, classes: int) -> np.ndarray:
    """The class of each query, int64 (m,), by the vote of its nearest tiles of the bank."""
    mean, std = bank.values.mean(dim=0), bank.values.std(dim=0, correction=0).clamp(min=1e-6)
    found = knn_vote((bank.values - mean) / std, bank.labels, (queries - mean) / std, classes)
    return found.cpu().numpy()
