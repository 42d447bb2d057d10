"""PixPro: each cell, smoothed over the cells that are like it, is near the cells of the other view on the same ground.

    y_i = sum_j max(cos(x_i, x_j), 0)^2 g(x_j)
    loss = mean over pairs (i, j) nearer than 0.7 cells of 2 - 2 cos(y_i, x'_j), both ways

x: projections of stage-4 cells, x' those of the average; a cell is as large as the diagonal of the larger one of both
views. Xie et al., "Propagate yourself: exploring pixel-level consistency for unsupervised visual representation
learning", CVPR 2021, eq. 3 to 5; g is linear, and normalised as in the published code. A tile without a pair counts
with nothing.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l.base import StepBatch
from dic3l.baselines.skeleton import Baseline, Mlp, Part
from dic3l.config import MethodConfig
from dic3l.encoder import Encoder
from dic3l.precision import full_precision, without_autocast

NEAR = 0.7
"""diagonals of a cell"""
SHARPNESS = 2
"""power of the similarity"""


class Propagation(nn.Module):
    """The pixel propagation module."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.transform = nn.Linear(dim, dim)

    def forward(self, cells: Tensor) -> Tensor:
        """(n, S, D) -> unit vectors (n, S, D)."""
        unit = F.normalize(cells, dim=-1)
        likeness = (unit @ unit.transpose(1, 2)).clamp(min=0) ** SHARPNESS
        return F.normalize(likeness @ F.normalize(self.transform(cells), dim=-1), dim=-1)


class PixelNetwork(nn.Module):
    """Encoder, projector of cells; the query network has the propagation, its `predictor`."""

    def __init__(self, encoder: Encoder, config: MethodConfig) -> None:
        super().__init__()
        self.encoder = encoder
        self.projector = Mlp((encoder.channels[4], config.hidden_dim, config.embedding_dim))
        self.predictor: Propagation | None = Propagation(config.embedding_dim)

    def forward(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Views uint8 (n, 1, h, w) -> unit vectors of their cells, row by row: (n, S, D) each."""
        return self._cells(first), self._cells(second)

    def _cells(self, views: Tensor) -> Tensor:
        cells = self.projector.at_cells(self.encoder(views)[4]).flatten(2).transpose(1, 2)
        with without_autocast(cells):
            cells = full_precision(cells)
            return F.normalize(cells, dim=-1) if self.predictor is None else self.predictor(cells)


def cell_centres(frames: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Where the cells of views lie: x and y in tile pixels, (n, side * side) each, row by row. frames: (n, 4)."""
    steps = (torch.arange(side, device=frames.device, dtype=frames.dtype) + 0.5) / side
    x = frames[:, :1] + (frames[:, 2:3] - frames[:, :1]) * steps
    y = frames[:, 1:2] + (frames[:, 3:] - frames[:, 1:2]) * steps
    return x.repeat(1, side), y.repeat_interleave(side, dim=1)


def pairs(first: Tensor, second: Tensor, side: int) -> Tensor:
    """Which cells of both views lie on the same ground: bool (n, S, S), S = side * side.

    first, second: frames (n, 4)."""
    diagonal = torch.maximum(
        *(torch.hypot(frame[:, 2] - frame[:, 0], frame[:, 3] - frame[:, 1]) for frame in (first, second))
    )
    (x, y), (other_x, other_y) = cell_centres(first, side), cell_centres(second, side)
    apart = torch.hypot(x[:, :, None] - other_x[:, None], y[:, :, None] - other_y[:, None])
    return apart < NEAR * (diagonal / side)[:, None, None]


class PixPro(Baseline):
    columns = ("loss", "pairs_per_image")

    def network(self, encoder: Encoder, config: MethodConfig) -> PixelNetwork:
        return PixelNetwork(encoder, config)

    def part(self, query: nn.Module, views: tuple[Tensor, Tensor], batch: StepBatch, rows: slice) -> Part:
        first, second = query(*views)
        first_target, second_target = self.targets(*views)
        near = pairs(batch.query_frames[rows], batch.key_frames[rows], round(first.shape[1] ** 0.5)).to(first.dtype)
        count = near.sum((1, 2))
        both = [
            (mask * (2 - 2 * (cells @ targets.transpose(1, 2)))).sum((1, 2)) / count.clamp(min=1)
            for mask, cells, targets in (
                (near, first, second_target),
                (near.transpose(1, 2), second, first_target),
            )
        ]
        losses = torch.stack([self.mean(both[0] + both[1]), self.mean(count)])
        return Part(losses, first.mean(1), second_target.mean(1))
