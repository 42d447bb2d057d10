"""DIC3L: two networks, two queues, three losses, and one optimiser step.

Method of arXiv 2511.07808. A query network learns; a key network is its exponential average. Of two views of a tile,
the query network sees the first and the key network the second:

- global: pooled stage-4 features, InfoNCE against a queue of keys (MoCo v2);
- contour consistency: the same on a shallower stage, with a head and a queue of its own;
- dynamic instances: boxes of the same ground, pooled from stage 4 of both views; a predictor on the query side
  regresses the key's vector (cosine).

Key images are shuffled among ranks and groups before they are encoded, so that no key is normalised together with
its query. Each rank holds the key views *and their boxes* of the shuffled images, and encodes both where they are;
only vectors travel back. (The published code gathers whole feature maps and projects the boxes in the order of the
queries; so its box projector normalises key boxes with the same images as the query boxes, ours does not.)
"""

from __future__ import annotations

import copy
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l import distributed
from dic3l.config import MethodConfig
from dic3l.encoder import STAGE_STRIDE, BoxHead, Encoder, projection_head
from dic3l.errors import ConfigError
from dic3l.losses import cosine_regression, info_nce
from dic3l.precision import full_precision
from dic3l.queue import KeyQueue
from dic3l.roi import pool_boxes

BOX_STAGE = 4
"""stage from which boxes are pooled, and the global vector"""


class Vectors(NamedTuple):
    """What a network makes of n views."""

    global_: Tensor
    """(n, D), unit rows"""
    contour: Tensor
    """(n, D), unit rows"""
    boxes: Tensor
    """(n, P, D): predictions of the query network, projections of the key network"""


class Network(nn.Module):
    """Encoder, heads, and on the query side the predictor. The query network is what DDP wraps."""

    def __init__(self, config: MethodConfig, bn_groups: int) -> None:
        super().__init__()
        self.encoder = Encoder(config.arch, config.weights, bn_groups)
        channels, hidden, dim = self.encoder.channels, config.hidden_dim, config.embedding_dim
        self.contour_stage = config.contour_stage
        self.global_head = projection_head(channels[BOX_STAGE], hidden, dim)
        self.contour_head = projection_head(channels[config.contour_stage], hidden, dim)
        self.box_head = BoxHead(channels[BOX_STAGE], hidden, dim, bn_groups)
        self.predictor: BoxHead | None = BoxHead(dim, hidden, dim, bn_groups)

    def forward(self, views: Tensor, boxes: Tensor, mask: Tensor) -> Vectors:
        """views: uint8 (n, 1, h, w); boxes: (n, P, 4) in view pixels; mask: bool (n, P)."""
        stages = self.encoder(views)
        pooled = pool_boxes(stages[BOX_STAGE], boxes, 1 / STAGE_STRIDE[BOX_STAGE])
        box_vectors = self.box_head(pooled, mask)
        if self.predictor is not None:
            box_vectors = self.predictor(box_vectors, mask)
        return Vectors(
            _unit(self.global_head(stages[BOX_STAGE].mean((2, 3)))),
            _unit(self.contour_head(stages[self.contour_stage].mean((2, 3)))),
            full_precision(box_vectors),
        )


def _unit(x: Tensor) -> Tensor:
    return F.normalize(full_precision(x), dim=1)


def key_network(query: Network) -> Network:
    """A copy of the query network without its predictor, closed to gradients."""
    network = copy.deepcopy(query)
    network.predictor = None
    return network.requires_grad_(False)


@dataclass(frozen=True)
class StepBatch:
    """One rank's part of a global batch of B = W * n tiles, on the device of the networks.

    Rank r holds the first views of tiles r*n .. (r+1)*n, and the second views of tiles perm[r*n .. (r+1)*n].
    """

    query_views: Tensor
    """uint8 (n, 1, h, w)"""
    query_boxes: Tensor
    """float32 (n, P, 4), in pixels of the first views"""
    query_mask: Tensor
    """bool (n, P)"""
    key_views: Tensor
    """uint8 (n, 1, h, w)"""
    key_boxes: Tensor
    """float32 (n, P, 4), in pixels of the second views"""
    key_mask: Tensor
    """bool (n, P)"""
    perm: Tensor
    """int64 (B,), the same on all ranks: key image j is of tile perm[j]"""

    def pin_memory(self) -> StepBatch:
        """A copy in page-locked memory, from which `to` does not wait."""
        return StepBatch(*(getattr(self, field.name).pin_memory() for field in fields(self)))

    def to(self, device: torch.device) -> StepBatch:
        """The batch on `device`; pinned memory is sent in the background."""
        return StepBatch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))


class Losses(NamedTuple):
    """Scalars of this rank; their means over ranks are those of the batch."""

    total: Tensor
    global_: Tensor
    contour: Tensor
    instances: Tensor
    """mean over the boxes of all ranks, in units that make the mean over ranks right"""
    top1_global: Tensor
    """share of queries that find their key before the whole queue"""
    top1_contour: Tensor
    boxes_per_image: Tensor
    """valid boxes an image, over all ranks"""


class DIC3L(nn.Module):
    """Query network, key network and both queues: the whole state of the method.

    Initial weights and queues are functions of `seed`. `ranks`: processes among which the batch is divided.
    """

    def __init__(self, config: MethodConfig, seed: int, ranks: int = 1) -> None:
        super().__init__()
        if config.bn_groups % ranks:
            raise ConfigError(
                f"bn_groups: expected a multiple of the {ranks} processes, found {config.bn_groups}; "
                "change bn_groups or the number of processes"
            )
        if config.contour_stage not in STAGE_STRIDE:
            raise ConfigError(f"contour_stage: expected 1, 2, 3 or 4, found {config.contour_stage}")
        self.config = config
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.query = Network(config, config.bn_groups // ranks)
        self.key = key_network(self.query)
        self.queue_global = KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + 1)
        self.queue_contour = KeyQueue(config.queue_size, config.embedding_dim, seed=2 * seed + 2)

    @torch.no_grad()
    def momentum_update(self) -> None:
        """key = m * key + (1 - m) * query, for all weights but the predictor's; BatchNorm buffers are the key's own."""
        learned = dict(self.query.named_parameters())
        keys, queries = zip(*((value, learned[name]) for name, value in self.key.named_parameters()), strict=True)
        torch._foreach_lerp_(keys, queries, 1 - self.config.momentum)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def encode_keys(self, batch: StepBatch) -> Vectors:
        """Keys of all B tiles, in the order of tiles: (B, D), (B, D), (B, P, D), the same on all ranks."""
        vectors = self.key(batch.key_views, batch.key_boxes, batch.key_mask)
        dim = vectors.global_.shape[1]
        rows = torch.cat((vectors.global_, vectors.contour, vectors.boxes.flatten(1)), dim=1)
        gathered = distributed.all_gather(rows)
        ordered = torch.empty_like(gathered)
        ordered[batch.perm] = gathered
        boxes = ordered[:, 2 * dim :].unflatten(1, vectors.boxes.shape[1:])
        return Vectors(ordered[:, :dim], ordered[:, dim : 2 * dim], boxes)

    def losses(self, queries: Vectors, keys: Vectors, mask: Tensor) -> Losses:
        """queries: of this rank's tiles; keys: of the same tiles; mask: bool (n, P), of their boxes.

        A weight of 0 leaves a loss measured and without effect.
        """
        config = self.config
        global_, top1_global = info_nce(queries.global_, keys.global_, self.queue_global.keys, config.temperature)
        contour, top1_contour = info_nce(queries.contour, keys.contour, self.queue_contour.keys, config.temperature)
        distance, count = cosine_regression(queries.boxes, keys.boxes, mask)
        everywhere = distributed.all_reduce(count)
        # DDP takes the mean of the ranks' gradients, so a sum over all ranks is W times that
        instances = distance * distributed.world() / everywhere.clamp(min=1)
        total = config.weight_global * global_ + config.weight_contour * contour + config.weight_instances * instances
        per_image = everywhere / (len(mask) * distributed.world())
        return Losses(total, global_, contour, instances, top1_global, top1_contour, per_image)

    def enqueue(self, keys: Vectors) -> None:
        """Both queues take the keys of all B tiles."""
        self.queue_global.enqueue(keys.global_)
        self.queue_contour.enqueue(keys.contour)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for the monitor, on the device, without gradient."""

    losses: Losses
    features: Tensor
    """(n, D): the unit global vectors of this rank's queries"""


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
    method.momentum_update()
    optimiser.zero_grad(set_to_none=True)
    with _autocast(batch.query_views.device, autocast):
        keys = method.encode_keys(batch)
        queries = query(batch.query_views, batch.query_boxes, batch.query_mask)
    here = slice(distributed.rank() * len(batch.query_views), (distributed.rank() + 1) * len(batch.query_views))
    losses = method.losses(queries, Vectors(*(rows[here] for rows in keys)), batch.query_mask)
    with distributed.peer_failures():
        losses.total.backward()
    method.enqueue(keys)  # after the backward pass, which reads the queues
    optimiser.step()
    return StepResult(Losses(*(value.detach() for value in losses)), queries.global_.detach())


def _autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
