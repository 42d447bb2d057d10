"""DenseCL: contrast of single cells, matched by what the encoder makes of them, beside the contrast of whole views.

    loss = (1 - w) InfoNCE(global) + w mean over cells of InfoNCE(q_i, k_c(i)),   c(i) = argmax_j cos(f_i, f_j)

f: stage-4 features of query and key; w = 0.5. Wang et al., "Dense contrastive learning for self-supervised visual
pre-training", CVPR 2021, eq. 2 to 4. Two queues: of global vectors, and of the means of a view's dense vectors.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l import distributed
from dic3l.base import StepBatch
from dic3l.baselines.skeleton import Baseline, Part, pooled
from dic3l.config import MethodConfig
from dic3l.encoder import Encoder, projection_head
from dic3l.groups import Division
from dic3l.losses.contrast import info_nce
from dic3l.precision import unit
from dic3l.queue import KeyQueue

DENSE_WEIGHT = 0.5
"""of the dense contrast in the loss"""


class DenseNetwork(nn.Module):
    """Encoder, a head of the mean over stage 4, and one of its cells."""

    def __init__(self, encoder: Encoder, config: MethodConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.global_head, self.dense_head = (
            projection_head(encoder.channels[4], config.hidden_dim, config.embedding_dim) for _ in range(2)
        )

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """uint8 (n, 1, h, w) -> unit vectors (n, D), those of cells (n, S, D), and their features (n, S, C)."""
        maps = self.encoder(views)[4]
        cells = maps.flatten(2).transpose(1, 2)
        return unit(self.global_head(pooled(maps))), unit(self.dense_head(cells)), unit(cells)


def matches(queries: Tensor, keys: Tensor) -> Tensor:
    """The key cell that is nearest to each query cell, int64 (n, S). queries, keys: unit features (n, S, C)."""
    return (queries @ keys.transpose(1, 2)).argmax(2)


class DenseCL(Baseline):
    averaged_norm = True
    columns = ("loss", "loss_global", "loss_dense", "top1_global", "top1_dense")

    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__(config, seed, division)
        self.queue_global, self.queue_dense = (
            KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + number) for number in (1, 2)
        )
        self._keys: list[tuple[Tensor, Tensor]] = []

    def network(self, encoder: Encoder, config: MethodConfig) -> DenseNetwork:
        return DenseNetwork(encoder, config)

    def part(self, query: nn.Module, views: tuple[Tensor, Tensor], batch: StepBatch, rows: slice) -> Part:
        first, cells, features = query(views[0])
        second, key_cells, key_features = self.targets(views[1])
        with torch.no_grad():
            place = matches(features, key_features)
            matched = key_cells.gather(1, place[..., None].expand_as(cells))
        temperature = self.config.temperature
        whole = info_nce(first, second, self.queue_global.keys, temperature)
        dense = info_nce(cells.flatten(0, 1), matched.flatten(0, 1), self.queue_dense.keys, temperature)
        by_tile = [value.view(len(first), -1).mean(1) for value in (dense.loss, dense.top1)]
        losses = [self.mean(value) for value in (whole.loss, by_tile[0], whole.top1, by_tile[1])]
        total = (1 - DENSE_WEIGHT) * losses[0] + DENSE_WEIGHT * losses[1]
        self._keys.append((second, F.normalize(key_cells.mean(1), dim=1)))
        return Part(torch.stack([total, *losses]), first, second)

    def remember(self) -> None:
        for queue, keys in zip((self.queue_global, self.queue_dense), zip(*self._keys, strict=True), strict=True):
            queue.enqueue(distributed.all_gather(torch.cat(keys), self.division.counts()))
        self._keys.clear()

    def held(self) -> dict[str, nn.Module]:
        return {"queue_global": self.queue_global, "queue_dense": self.queue_dense, **super().held()}
