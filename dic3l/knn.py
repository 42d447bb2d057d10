"""kNN: what a frozen network knows already, without anything being fitted.

Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018, section 3.4: the k
nearest rows of a bank vote for their class, each with weight e^(cos / T).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from dic3l import distributed
from dic3l.base import Method
from dic3l.config import Config
from dic3l.draws import permutation
from dic3l.stream import Tiles

NEIGHBOURS = 20
_TEMPERATURE = 0.07
_BATCH = 64
_BANK_SHARE = 2 / 3
"""of the online probe's tiles: they vote on the others"""


def knn_vote(bank: Tensor, labels: Tensor, queries: Tensor, classes: int, neighbours: int = NEIGHBOURS) -> Tensor:
    """The class of each query: int64 (M,). bank: (N, D) and queries: (M, D) of any length; labels: int64 (N,)."""
    similarity = F.normalize(queries.float(), dim=1) @ F.normalize(bank.float(), dim=1).T
    nearest, rows = similarity.topk(min(neighbours, len(bank)), dim=1)
    votes = similarity.new_zeros(len(queries), classes)
    return votes.scatter_add_(1, labels[rows], (nearest / _TEMPERATURE).exp()).argmax(1)


@dataclass(frozen=True)
class SceneProbe:
    """Val tiles whose scenes are told by other val tiles: no labels, but a place and a pass have a look of their own.

    Val tiles lie apart from all train tiles on the ground, so this is of ground that the network has not seen. Worth
    comparing between lines of one run, and runs on one corpus; a network that tells nothing finds `chance`.
    """

    tiles: Tiles
    bank_rows: np.ndarray
    """int64 (N,): of the tiles that vote"""
    bank_labels: np.ndarray
    """int64 (N,): their scenes"""
    query_rows: np.ndarray
    """int64 (M,): of the tiles that are voted on"""
    query_labels: np.ndarray

    @property
    def chance(self) -> float:
        """What naming the most frequent scene would find."""
        return float((self.query_labels == np.bincount(self.bank_labels).argmax()).mean())

    def accuracy(self, method: Method, config: Config, device: torch.device, autocast: torch.dtype | None) -> float:
        """Of pooled stage-4 features of the query network. All ranks call it together: each encodes a share."""
        bank, labels = self._features(self.bank_rows, self.bank_labels, method, config, device, autocast)
        queries, truth = self._features(self.query_rows, self.query_labels, method, config, device, autocast)
        found = knn_vote(bank, labels, queries, int(max(self.bank_labels.max(), self.query_labels.max())) + 1)
        return float((found == truth).double().mean())

    @torch.no_grad()
    def _features(
        self,
        rows: np.ndarray,
        labels: np.ndarray,
        method: Method,
        config: Config,
        device: torch.device,
        autocast: torch.dtype | None,
    ) -> tuple[Tensor, Tensor]:
        rank, world = distributed.rank(), distributed.world()
        mine = rows[rank::world]
        encoder = method.encoder.eval()
        parts = [torch.zeros(0, encoder.channels[4], device=device)]
        try:
            for start in range(0, len(mine), _BATCH):
                codes = centre(self.tiles.read(mine[start : start + _BATCH])[:, :1], config.views.crop_size)
                with torch.autocast(device.type, dtype=autocast, enabled=autocast is not None):
                    maps = encoder(torch.from_numpy(codes).to(device))[4]
                parts.append(maps.float().mean((2, 3)))
        finally:
            method.train()
        counts = [len(rows[other::world]) for other in range(world)]
        ordered = np.concatenate([labels[other::world] for other in range(world)])
        return distributed.all_gather(torch.cat(parts), counts), torch.from_numpy(ordered).to(device)


def centre(tiles: np.ndarray, side: int) -> np.ndarray:
    """The middle of tiles (N, C, H, W), at most `side` pixels each way, contiguous."""
    height, width = tiles.shape[2:]
    top, left = max(0, height - side) // 2, max(0, width - side) // 2
    return np.ascontiguousarray(tiles[:, :, top : top + side, left : left + side])


def scene_probe(val: Tiles, scenes: Sequence[str], config: Config) -> SceneProbe | None:
    """The online probe of a run, of val tiles and their scenes, chosen by its seed.

    None where it is not asked for, or where there are not two scenes to tell apart.
    """
    rows = permutation(config.train.seed, "probe", 0, len(val))[: config.train.probe_tiles]
    bank, queries = np.split(rows, [int(_BANK_SHARE * len(rows))])
    numbers = {name: number for number, name in enumerate(dict.fromkeys(scenes[row] for row in bank))}
    queries = np.array([row for row in queries if scenes[row] in numbers], np.int64)
    labels = [np.array([numbers[scenes[row]] for row in part], np.int64) for part in (bank, queries)]
    if len(numbers) < 2 or not len(queries):
        return None
    return SceneProbe(val, bank, labels[0], queries, labels[1])
