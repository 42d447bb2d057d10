"""DIC3L: two networks, two queues, three losses, and one optimiser step.

Method of arXiv 2511.07808. A query network learns; a key network is its exponential average. Of two views of a tile,
the query network sees the first and the key network the second:

- global: pooled stage-4 features, InfoNCE against a queue of keys (MoCo v2);
- contour consistency: the same of a shallower stage, with a head and a queue of its own: of its mean (as published),
  or of matched points on edges (`method.contour`); the queue takes one point a tile;
- dynamic instances: boxes of the same ground, pooled from stage 4 of both views; a predictor on the query side
  regresses the key's vector (cosine).

No key may be normalised together with its query. Either key images are shuffled among ranks and groups before they are
encoded, as published: each rank holds the key views *and their boxes* of the shuffled images, encodes both where they
are, and only vectors travel back. (The published code gathers whole feature maps and projects the boxes in the order of
the queries; so its box projector normalises key boxes with the same images as the query boxes, ours does not.) Or the
key network normalises by running averages of the query network's statistics (`method.key_norm` = averaged; Cai et al.,
"Exponential moving average normalization", CVPR 2021): then no key depends on another image, and nothing is shuffled.

A step is one of the whole batch, whatever the number of processes and parts (`train.accumulate`): all keys are encoded
first, all queries meet the same queues, losses are means over the batch, the queues take the batch's keys once, and the
key network moves once.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dic3l import distributed
from dic3l.batchnorm import follow, set_groups
from dic3l.config import MethodConfig
from dic3l.encoder import STAGE_STRIDE, BoxHead, Encoder, projection_head
from dic3l.errors import CheckpointError, ConfigError
from dic3l.groups import Division
from dic3l.losses.contour import contour_contrast
from dic3l.losses.contrast import info_nce
from dic3l.losses.instances import cosine_regression
from dic3l.precision import full_precision
from dic3l.profile import span
from dic3l.queue import KeyQueue
from dic3l.roi import pool_boxes

BOX_STAGE = 4
"""stage from which boxes are pooled, and the global vector"""


class Vectors(NamedTuple):
    """What a network makes of n views."""

    global_: Tensor
    """(n, D), unit rows"""
    contour: Tensor
    """(n, Q, D), unit vectors"""
    boxes: Tensor
    """(n, P, D): predictions of the query network, projections of the key network"""


class Network(nn.Module):
    """Encoder, heads, and on the query side the predictor. The query network is what DDP wraps."""

    def __init__(self, config: MethodConfig) -> None:
        super().__init__()
        self.encoder = Encoder(config.arch, config.weights, config.stem)
        channels, hidden, dim = self.encoder.channels, config.hidden_dim, config.embedding_dim
        self.contour, self.contour_stage = config.contour, config.contour_stage
        self.global_head = projection_head(channels[BOX_STAGE], hidden, dim)
        self.contour_head = projection_head(channels[config.contour_stage], hidden, dim)
        self.box_head = BoxHead(channels[BOX_STAGE], hidden, dim)
        self.predictor: BoxHead | None = BoxHead(dim, hidden, dim)

    def forward(self, views: Tensor, boxes: Tensor, mask: Tensor, points: Tensor) -> Vectors:
        """views: uint8 (n, 1, h, w); boxes: (n, P, 4) in view pixels; mask: bool (n, P); points: (n, Q, 4), the
        squares of the contour branch."""
        stages = self.encoder(views)
        with span("roi"):
            pooled = pool_boxes(stages[BOX_STAGE], boxes, 1 / STAGE_STRIDE[BOX_STAGE])
        box_vectors = self.box_head(pooled, mask)
        if self.predictor is not None:
            box_vectors = self.predictor(box_vectors, mask)
        shallow = stages[self.contour_stage]
        if self.contour == "pooled":  # also where the view is no whole number of cells
            contour = full_precision(shallow).mean((2, 3))[:, None]
        else:
            with span("roi"):
                contour = pool_boxes(shallow, points, 1 / STAGE_STRIDE[self.contour_stage])
        return Vectors(
            _unit(self.global_head(stages[BOX_STAGE].mean((2, 3)))),
            _unit(self.contour_head(contour)),
            full_precision(box_vectors),
        )


def _unit(x: Tensor) -> Tensor:
    return F.normalize(full_precision(x), dim=-1)


def key_network(query: Network) -> Network:
    """A copy of the query network without its predictor, closed to gradients."""
    network = copy.deepcopy(query)
    network.predictor = None
    return network.requires_grad_(False)


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a global batch of B tiles, on the device of the networks: n of them.

    A rank holds the first views of the tiles of its rows (`dic3l.groups.Division.rows`), and the second views of
    tiles perm[rows]. Coordinates are pixels of the views.
    """

    query_views: Tensor
    """uint8 (n, 1, h, w)"""
    query_boxes: Tensor
    """float32 (n, P, 4), of the first views"""
    query_mask: Tensor
    """bool (n, P)"""
    query_points: Tensor
    """float32 (n, Q, 4): squares of the contour branch, in the first views"""
    point_mask: Tensor
    """bool (n, Q), of the same tiles"""
    key_views: Tensor
    """uint8 (n, 1, h, w)"""
    key_boxes: Tensor
    """float32 (n, P, 4), of the second views"""
    key_mask: Tensor
    """bool (n, P)"""
    key_points: Tensor
    """float32 (n, Q, 4): the first of a tile always covers something, whatever its mask, for the queue takes it"""
    perm: Tensor
    """int64 (B,), the same on all ranks: key image j is of tile perm[j]"""

    def queries(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the query network is given."""
        return self.query_views[rows], self.query_boxes[rows], self.query_mask[rows], self.query_points[rows]

    def keys(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the key network is given."""
        return self.key_views[rows], self.key_boxes[rows], self.key_mask[rows], self.key_points[rows]


class Losses(NamedTuple):
    """Scalars of this rank; their means over ranks are those of the batch."""

    total: Tensor
    global_: Tensor
    """mean over the tiles of all ranks"""
    contour: Tensor
    """mean over the points of all ranks"""
    instances: Tensor
    """mean over the boxes of all ranks"""
    top1_global: Tensor
    """share of queries that find their key before the whole queue"""
    top5_global: Tensor
    """share of queries that find their key before all but four of the queue"""
    top1_contour: Tensor
    boxes_per_image: Tensor
    """valid boxes an image"""
    points_per_image: Tensor
    """valid points of the contour branch an image"""


class Counts(NamedTuple):
    """Of the whole batch, over all ranks: what sums are divided by."""

    images: Tensor
    boxes: Tensor
    points: Tensor


class DIC3L(nn.Module):
    """Query network, key network and both queues: the whole state of the method.

    Initial weights and queues are functions of `seed`. `division`: how batches are divided.
    """

    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__()
        if config.contour_stage not in STAGE_STRIDE:
            raise ConfigError(f"contour_stage: expected 1, 2, 3 or 4, found {config.contour_stage}")
        self.config, self.division = config, division
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = Network(config)
        self.key = key_network(self.query)
        self.queue_global = KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + 1)
        self.queue_contour = KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + 2)
        self.steps = 0
        """steps done"""
        self.train()

    def train(self, mode: bool = True) -> DIC3L:
        """A key network that normalises by running averages never gathers statistics of its own."""
        super().train(mode)
        if self.config.key_norm == "averaged":
            self.key.eval()
        return self

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if state["steps"] < 0:
            raise CheckpointError(f"method: {state['steps']} steps found, expected 0 or more")
        self.steps = state["steps"]

    @torch.no_grad()
    def momentum_update(self) -> None:
        """key = m * key + (1 - m) * query, for all weights but the predictor's.

        Running statistics are the key network's own where keys are shuffled; where they are averaged they follow the
        query's in the same way, faster in the first steps, whose statistics nothing knew before.
        """
        learned = dict(self.query.named_parameters())
        _lerp(((value, learned[name]) for name, value in self.key.named_parameters()), 1 - self.config.momentum)
        if self.config.key_norm == "averaged":
            known = dict(self.query.named_buffers())
            # before the first step the query has none of its own, and those of the first count whole
            share = max(1 - self.config.momentum, 1 / max(1, self.steps))
            _lerp(((value, known[name]) for name, value in self.key.named_buffers() if _running(name)), share)

    def encode_keys(self, batch: StepBatch) -> Vectors:
        """Keys of all B tiles, in the order of tiles: (B, D), (B, Q, D), (B, P, D), the same on all ranks."""
        rank = distributed.rank()
        parts = []
        with torch.no_grad():
            for part in range(self.division.parts):
                set_groups(self.key, self.division.group_sizes(rank, part))
                parts.append(self.key(*batch.keys(self.division.part_rows(rank, part))))
            vectors = Vectors(*(torch.cat(values) for values in zip(*parts, strict=True)))
            flat = [values.flatten(1) for values in vectors]
            with span("gather"):
                gathered = distributed.all_gather(torch.cat(flat, dim=1), self.division.counts())
            ordered = torch.empty_like(gathered)
            ordered[batch.perm] = gathered
            split = ordered.split([values.shape[1] for values in flat], dim=1)
        return Vectors(*(part.view(-1, *like.shape[1:]) for part, like in zip(split, vectors, strict=True)))

    def counts(self, batch: StepBatch) -> Counts:
        """All ranks call it together."""
        boxes, points = batch.query_mask.sum(), batch.point_mask.sum()
        here = torch.stack((boxes, points)).to(torch.float64)
        everywhere = distributed.all_reduce(here)
        return Counts(torch.full_like(everywhere[0], self.division.images), everywhere[0], everywhere[1])

    def losses(self, queries: Vectors, keys: Vectors, box_mask: Tensor, point_mask: Tensor, counts: Counts) -> Losses:
        """Of some tiles' queries and the keys of the same tiles; what tiles of a batch give adds up to the batch's.

        box_mask: bool (n, P); point_mask: bool (n, Q); counts: of the whole batch. A weight of 0 leaves a loss
        measured and without effect.
        """
        config = self.config
        contrast = info_nce(queries.global_, keys.global_, self.queue_global.keys, config.temperature)
        points = contour_contrast(
            queries.contour, keys.contour, point_mask, self.queue_contour.keys, config.temperature
        )
        instances = cosine_regression(queries.boxes, keys.boxes, box_mask)

        def mean(total: Tensor, count: Tensor) -> Tensor:
            # DDP takes the mean of the ranks' gradients, so a sum over all ranks is W times that
            return total * distributed.world() / count.clamp(min=1).to(total.dtype)

        global_ = mean(contrast.loss.sum(), counts.images)
        contour = mean(points.loss, counts.points)
        regression = mean(instances, counts.boxes)
        total = config.weight_global * global_ + config.weight_contour * contour + config.weight_instances * regression
        return Losses(
            total,
            global_,
            contour,
            regression,
            mean(contrast.top1.sum(), counts.images),
            mean(contrast.top5.sum(), counts.images),
            mean(points.top1, counts.points),
            mean(box_mask.sum().to(total.dtype), counts.images),
            mean(point_mask.sum().to(total.dtype), counts.images),
        )

    def enqueue(self, keys: Vectors) -> None:
        """Both queues take the keys of all B tiles: of the contour branch, each tile's first point."""
        self.queue_global.enqueue(keys.global_)
        self.queue_contour.enqueue(keys.contour[:, 0])

    def follow(self) -> None:
        """Running statistics take what the step has gathered. All ranks call it together."""
        follow(self.query, self.steps)
        follow(self.key, self.steps)


def _lerp(pairs: Iterable[tuple[Tensor, Tensor]], share: float) -> None:
    """Move the first of each pair towards the second, in place."""
    moved, towards = zip(*pairs, strict=True)
    torch._foreach_lerp_(moved, towards, share)  # pyright: ignore[reportPrivateImportUsage]


def _running(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for the monitor, on the device, without gradient."""

    losses: Losses
    queries: Tensor
    """(n, D): the unit global vectors of this rank's tiles"""
    keys: Tensor
    """(n, D): those of the same tiles' keys"""
    gradient: Tensor
    """scalar: the length of the gradient that the optimiser took, the same on all ranks"""


def training_step(
    method: DIC3L,
    query: nn.Module,
    batch: StepBatch,
    optimiser: torch.optim.Optimizer,
    lr: float,
    autocast: torch.dtype | None = None,
) -> StepResult:
    """One optimiser step, in the published order, without waiting for the device.

    query: `method.query`, or the same in DDP; autocast: dtype of the networks' arithmetic, None = that of the weights.
    The key network moves first, and the queues take the batch's keys last, so that a batch is contrasted with those
    before it.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    with span("momentum"):
        method.momentum_update()
    optimiser.zero_grad(set_to_none=True)
    division, rank = method.division, distributed.rank()
    with span("key"), _autocast(batch.query_views.device, autocast):
        keys = method.encode_keys(batch)
    with span("gather"):
        counts = method.counts(batch)
    own = Vectors(*(values[division.rows(rank)] for values in keys))
    losses: list[Losses] = []
    features = []
    for part in range(division.parts):
        rows = division.part_rows(rank, part)
        set_groups(method.query, division.group_sizes(rank, part))
        # gradients travel once, with the last part
        with _alone(query) if part + 1 < division.parts else nullcontext(), distributed.peer_failures():
            with span("query"), _autocast(batch.query_views.device, autocast):
                queries = query(*batch.queries(rows))
            part_keys = Vectors(*(values[rows] for values in own))
            with span("losses"):
                found = method.losses(queries, part_keys, batch.query_mask[rows], batch.point_mask[rows], counts)
            with span("backward"):
                found.total.backward()
        losses.append(Losses(*(value.detach() for value in found)))
        features.append(queries.global_.detach())
    with span("queue"):
        method.enqueue(keys)  # after the backward pass, which reads the queues
    gradient = _length([value.grad for value in method.query.parameters() if value.grad is not None])
    with span("optimiser"):
        optimiser.step()
    with span("statistics"):
        method.follow()
    method.steps += 1
    summed = Losses(*(torch.stack(values).sum(0) for values in zip(*losses, strict=True)))
    return StepResult(summed, torch.cat(features), own.global_, gradient)


def _length(tensors: list[Tensor]) -> Tensor:
    """Of all of them as one vector."""
    return torch.stack(torch._foreach_norm(tensors)).norm()  # pyright: ignore[reportPrivateImportUsage]


def _alone(query: nn.Module) -> AbstractContextManager[Any]:
    """A context in which gradients stay on this rank."""
    return query.no_sync() if isinstance(query, DistributedDataParallel) else nullcontext()


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
