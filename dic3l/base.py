"""What the trainer asks of a method, and the step that all methods share.

A method holds a query network, which learns, mostly a key network, which follows it, and what else its loss needs. It
turns a batch into gradients of the query network (`Method.backward`); when rates are set, who moves first, how long the
gradient is and what is remembered is the same for all of them (`training_step`).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dic3l.batchnorm import follow
from dic3l.config import MethodConfig
from dic3l.encoder import Encoder
from dic3l.errors import CheckpointError
from dic3l.groups import Division
from dic3l.profile import span
from dic3l.queue import KeyQueue

QUEUE = "queue_global"
"""name of the queue of whole views' keys in what a method holds"""


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
    query_frames: Tensor
    """float32 (n, 4): where the first views lie on their tiles: the x of their left edge, the y of their top, the x of
    their right edge, the y of their bottom, in tile pixels; left beyond right where a view is mirrored"""
    key_frames: Tensor
    """float32 (n, 4): the same of the second views"""

    def queries(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the query network is given."""
        return self.query_views[rows], self.query_boxes[rows], self.query_mask[rows], self.query_points[rows]

    def keys(self, rows: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What the key network is given."""
        return self.key_views[rows], self.key_boxes[rows], self.key_mask[rows], self.key_points[rows]


class Found(NamedTuple):
    """What a method makes of a batch; the gradient is in the query network."""

    losses: Tensor
    """(columns,) without gradient: scalars of this rank whose means over ranks are those of the batch"""
    queries: Tensor
    """(n, D): unit vectors of this rank's tiles, without gradient"""
    keys: Tensor
    """(n, D): what each of them should be near"""


class Method(nn.Module):
    """The state of a method, and its gradients. Initial weights are a function of the seed."""

    query: Any
    """a network that learns; has `encoder`, a `dic3l.encoder.Encoder`; DDP wraps it"""
    key: Any
    """a network that follows the query network; None where nothing does"""
    columns: tuple[str, ...]
    """names of the losses in metrics.jsonl; the first is 'loss'"""
    averaged_norm = False
    """the key network normalises by running averages of the query network's statistics: no key tells of its batch"""

    def __init__(self, config: MethodConfig, division: Division) -> None:
        super().__init__()
        self.config, self.division = config, division
        self.steps = 0
        """steps done"""

    def train(self, mode: bool = True) -> Self:
        """A key network that normalises by running averages never gathers statistics of its own."""
        super().train(mode)
        if self.averaged_norm and self.key is not None:
            self.key.eval()
        return self

    @abstractmethod
    def backward(self, query: nn.Module, batch: StepBatch, autocast: torch.dtype | None) -> Found:
        """Add the gradients of a batch to the query network. query: `self.query`, or the same in DDP."""

    @property
    def encoder(self) -> Encoder:
        """What is trained for: the query network's."""
        return cast(Encoder, self.query.encoder)

    @property
    def queue(self) -> KeyQueue | None:
        """Of the keys of whole views; None where there is none."""
        return cast("KeyQueue | None", self.held().get(QUEUE))

    def held(self) -> Mapping[str, nn.Module]:
        """What every rank has to hold alike, though it is never sent, by name."""
        return {} if self.key is None else {"key network": self.key}

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        if state["steps"] < 0:
            raise CheckpointError(f"method: {state['steps']} steps found, expected 0 or more")
        self.steps = state["steps"]

    @torch.no_grad()
    def momentum_update(self) -> None:
        """key = m * key + (1 - m) * query, for all weights that the key network has; a predictor has no counterpart.

        Running statistics are the key network's own, or, where they are averaged, follow the query's in the same way,
        faster in the first steps, whose statistics nothing knew before.
        """
        if self.key is None:
            return
        learned = dict(self.query.named_parameters())
        lerp(((value, learned[name]) for name, value in self.key.named_parameters()), 1 - self.config.momentum)
        if self.averaged_norm:
            known = dict(self.query.named_buffers())
            # before the first step the query has none of its own, and those of the first count whole
            share = max(1 - self.config.momentum, 1 / max(1, self.steps))
            lerp(((value, known[name]) for name, value in self.key.named_buffers() if _running(name)), share)

    def follow(self) -> None:
        """Running statistics take what the step has gathered. All ranks call it together."""
        for network in (self.query, self.key):
            if network is not None:
                follow(network, self.steps)


@dataclass(frozen=True)
class StepResult:
    """What a step leaves for the monitor, on the device, without gradient."""

    losses: Tensor
    """(columns,)"""
    queries: Tensor
    """(n, D)"""
    keys: Tensor
    """(n, D)"""
    gradient: Tensor
    """scalar: the length of the gradient that the optimiser took, the same on all ranks"""


def training_step(
    method: Method,
    query: nn.Module,
    batch: StepBatch,
    optimiser: torch.optim.Optimizer,
    lr: float,
    autocast: torch.dtype | None = None,
) -> StepResult:
    """One optimiser step, in the published order, without waiting for the device.

    query: `method.query`, or the same in DDP; autocast: dtype of the networks' arithmetic, None = that of the weights.
    The key network moves first; queues take the batch's keys last, so that a batch is contrasted with those before it.
    """
    for group in optimiser.param_groups:
        group["lr"] = lr
    with span("momentum"):
        method.momentum_update()
    optimiser.zero_grad(set_to_none=True)
    found = method.backward(query, batch, autocast)
    gradient = _length([value.grad for value in method.query.parameters() if value.grad is not None])
    with span("optimiser"):
        optimiser.step()
    with span("statistics"):
        method.follow()
    method.steps += 1
    return StepResult(found.losses, found.queries, found.keys, gradient)


def lerp(pairs: Iterable[tuple[Tensor, Tensor]], share: float) -> None:
    """Move the first of each pair towards the second, in place."""
    moved, towards = zip(*pairs, strict=True)
    torch._foreach_lerp_(moved, towards, share)  # pyright: ignore[reportPrivateImportUsage]


def _running(name: str) -> bool:
    return name.endswith(("running_mean", "running_var"))


def _length(tensors: list[Tensor]) -> Tensor:
    """Of all of them as one vector."""
    return torch.stack(torch._foreach_norm(tensors)).norm()  # pyright: ignore[reportPrivateImportUsage]


def alone(query: nn.Module) -> AbstractContextManager[Any]:
    """A context in which gradients stay on this rank."""
    return query.no_sync() if isinstance(query, DistributedDataParallel) else nullcontext()


def in_precision(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[object]:
    """Of the networks' arithmetic."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype=dtype)
