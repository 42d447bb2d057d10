"""DIC3L: two networks, two queues, three losses.

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
from contextlib import nullcontext
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from dic3l import distributed
from dic3l.base import Found, Method, StepBatch, alone, in_precision
from dic3l.batchnorm import set_groups
from dic3l.config import MethodConfig
from dic3l.encoder import STAGE_STRIDE, BoxHead, Encoder, projection_head
from dic3l.errors import ConfigError
from dic3l.groups import Division
from dic3l.losses.contour import contour_contrast
from dic3l.losses.contrast import info_nce
from dic3l.losses.instances import cosine_regression
from dic3l.precision import full_precision, unit
from dic3l.profile import span
from dic3l.queue import KeyQueue
from dic3l.roi import pool_boxes

N = TypeVar("N", bound=nn.Module)
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
        self.global_head = projection_head(channels[BOX_STAGE], hidden, dim, config.head_layers)
        self.contour_head = projection_head(channels[config.contour_stage], hidden, dim, config.head_layers)
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
            unit(self.global_head(stages[BOX_STAGE].mean((2, 3)))),
            unit(self.contour_head(contour)),
            full_precision(box_vectors),
        )


def key_network(query: N) -> N:
    """A copy of the query network without its `predictor`, closed to gradients."""
    network = copy.deepcopy(query)
    network.predictor = None  # type: ignore[assignment]
    return network.requires_grad_(False)


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


class DIC3L(Method):
    """Query network, key network and both queues: the whole state of the method.

    Initial weights and queues are functions of `seed`. `division`: how batches are divided.
    """

    query: Network
    key: Network
    columns = (
        *("loss", "loss_global", "loss_contour", "loss_instances"),
        *("top1_global", "top5_global", "top1_contour", "boxes_per_image", "points_per_image"),
    )
    """of `Losses`"""

    def __init__(self, config: MethodConfig, seed: int, division: Division) -> None:
        super().__init__(config, division)
        self.averaged_norm = config.key_norm == "averaged"
        if config.contour_stage not in STAGE_STRIDE:
            raise ConfigError(f"contour_stage: expected 1, 2, 3 or 4, found {config.contour_stage}")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = Network(config)
        self.key = key_network(self.query)
        self.queue_global = KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + 1)
        self.queue_contour = KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + 2)
        self.train()

    def held(self) -> dict[str, nn.Module]:
        return {"queue_global": self.queue_global, "queue_contour": self.queue_contour, **super().held()}

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

    def backward(self, query: nn.Module, batch: StepBatch, autocast: torch.dtype | None) -> Found:
        division, rank, device = self.division, distributed.rank(), batch.query_views.device
        with span("key"), in_precision(device, autocast):
            keys = self.encode_keys(batch)
        with span("gather"):
            counts = self.counts(batch)
        own = Vectors(*(values[division.rows(rank)] for values in keys))
        losses: list[Tensor] = []
        features = []
        for part in range(division.parts):
            rows = division.part_rows(rank, part)
            set_groups(self.query, division.group_sizes(rank, part))
            # gradients travel once, with the last part
            with alone(query) if part + 1 < division.parts else nullcontext(), distributed.peer_failures():
                with span("query"), in_precision(device, autocast):
                    queries = query(*batch.queries(rows))
                part_keys = Vectors(*(values[rows] for values in own))
                with span("losses"):
                    found = self.losses(queries, part_keys, batch.query_mask[rows], batch.point_mask[rows], counts)
                with span("backward"):
                    found.total.backward()
            losses.append(torch.stack([value.detach() for value in found]))
            features.append(queries.global_.detach())
        with span("queue"):
            self.enqueue(keys)  # after the backward pass, which reads the queues
        return Found(torch.stack(losses).sum(0), torch.cat(features), own.global_)
