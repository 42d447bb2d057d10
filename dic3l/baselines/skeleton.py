"""What baselines share: both views of a tile go through one network, and through its average where a method has one.

Their step is one of the whole batch, whatever the number of processes, as DIC3L's is: losses that compare tiles with
one another are those of all tiles, gathered with their gradients.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l import distributed
from dic3l.base import Found, Method, StepBatch, alone, in_precision
from dic3l.batchnorm import GroupedBatchNorm1d, set_groups
from dic3l.config import MethodConfig
from dic3l.encoder import Encoder
from dic3l.errors import ConfigError
from dic3l.groups import Division
from dic3l.method import key_network
from dic3l.precision import unit
from dic3l.profile import span


class Mlp(nn.Module):
    """Linear layers, all but the last followed by BatchNorm and ReLU: rows (R, sizes[0]) -> (R, sizes[-1]).

    Rows of an image are contiguous, as many for each. closing_norm: BatchNorm without weights after the last layer.
    """

    def __init__(self, sizes: Sequence[int], closing_norm: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in pairwise(sizes))
        self.norms = nn.ModuleList(GroupedBatchNorm1d(size) for size in sizes[1 : None if closing_norm else -1])
        if closing_norm:
            self.norms[-1].requires_grad_(False)

    def forward(self, rows: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            rows = layer(rows)
            if index < len(self.norms):
                rows = self.norms[index](rows)
            if index < len(self.layers) - 1:
                rows = F.relu(rows)
        return rows

    def at_cells(self, maps: Tensor) -> Tensor:
        """The same of every cell: (N, C, h, w) -> (N, D, h, w)."""
        images, _, height, width = maps.shape
        rows = self(maps.permute(0, 2, 3, 1).flatten(0, 2))
        return rows.view(images, height, width, -1).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Part:
    """What a method makes of some tiles of the batch."""

    losses: Tensor
    """(columns,): the first is what is minimised. Sums over the tiles, divided by what all ranks hold, times the number
    of ranks: their means over ranks, summed over parts, are those of the batch"""
    queries: Tensor
    """(n, D), of any length"""
    keys: Tensor
    """(n, D): what each of them should be near"""


class Baseline(Method):
    """A network for both views, `self.query`, and its average `self.key` if `averaged`."""

    averaged = True
    coupled = False
    """the loss of a tile depends on the other tiles of its batch, so that a batch cannot be taken in parts"""

    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__(config, division)
        if self.coupled and division.parts > 1:
            raise ConfigError(
                f"train.accumulate: expected 1, found {division.parts}: the loss of {config.name} compares all tiles "
                "of a batch with one another; give a smaller --batch-size"
            )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = self.network(Encoder(config.arch, config.weights, config.stem), config)
        self.key = key_network(self.query) if self.averaged else None
        self.train()

    @abstractmethod
    def network(self, encoder: Encoder, config: MethodConfig) -> nn.Module:
        """Of (first views, second views), uint8 (n, 1, h, w) each. Its attribute `encoder` is the one given; parts that
        only the query network has are called `predictor`."""

    @abstractmethod
    def part(self, query: nn.Module, views: tuple[Tensor, Tensor], batch: StepBatch, rows: slice) -> Part:
        """Of the tiles `rows` of this rank. query: the network, maybe in DDP; views: theirs, first and second."""

    def remember(self) -> None:
        """Called once a step, after the backward pass: queues take the keys of the batch."""

    def backward(self, query: nn.Module, batch: StepBatch, autocast: torch.dtype | None) -> Found:
        division, rank = self.division, distributed.rank()
        parts = []
        for index in range(division.parts):
            rows, sizes = division.part_rows(rank, index), division.group_sizes(rank, index)
            for network in (self.query, self.key):
                if network is not None:
                    set_groups(network, sizes)
            with alone(query) if index + 1 < division.parts else nullcontext(), distributed.peer_failures():
                with span("query"), in_precision(batch.query_views.device, autocast):
                    part = self.part(query, (batch.query_views[rows], batch.key_views[rows]), batch, rows)
                with span("backward"):
                    part.losses[0].backward()
            parts.append(part)
        with span("queue"):
            self.remember()
        return Found(
            torch.stack([part.losses.detach() for part in parts]).sum(0),
            torch.cat([unit(part.queries.detach()) for part in parts]),
            torch.cat([unit(part.keys.detach()) for part in parts]),
        )

    @torch.no_grad()
    def targets(self, *views: Tensor) -> tuple[Tensor, ...]:
        """What the average makes of views."""
        with span("key"):
            return self.key(*views)

    def mean(self, rows: Tensor) -> Tensor:
        """Of a value of each tile (n,) over all tiles of the batch: this part's share, times the number of ranks, whose
        gradients DDP averages."""
        return rows.sum() * distributed.world() / self.division.images


def pooled(maps: Tensor) -> Tensor:
    """(N, C, h, w) -> (N, C)."""
    return maps.mean((2, 3))
