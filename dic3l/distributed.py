"""Processes that train together, started by torchrun: who we are, what we exchange, and how it ends.

Everything works without a process group too, as a world of one.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dic3l.config import Device
from dic3l.errors import ConfigError, Dic3lError, JointError

TIMEOUT = timedelta(minutes=10)
"""after which a silent peer counts as dead"""
T = TypeVar("T")
_PEER_SIGNS = ("connection closed", "connection reset", "connection refused", "timed out", "timeout", "nccl", "gloo")


def choose_device(device: Device) -> torch.device:
    """The device of this process: with CUDA, the one of its local rank. ConfigError where it is not there."""
    if device == "cpu" or (device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError("device 'cuda': expected a CUDA device, found none; use device 'cpu' or 'auto'")
    local_rank, devices = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if devices == 1 and "SLURM_PROCID" in os.environ:  # bound to this task, which sees no other
        local_rank = 0
    if local_rank >= devices:
        raise ConfigError(
            f"device 'cuda': expected a device for each process of this machine, found {devices} for process "
            f"{local_rank + 1}; start fewer processes, or bind a device to each"
        )
    return torch.device("cuda", local_rank)


@contextmanager
def process_group(device: Device, timeout: timedelta = TIMEOUT) -> Iterator[torch.device]:
    """Join the processes that torchrun started, and leave them at the end; gives the device of this process.

    Without torchrun's environment, this process is alone. NCCL with CUDA, gloo otherwise. timeout: after which a silent
    peer counts as dead.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" not in os.environ:
        yield chosen
        return
    settings: dict[str, Any] = {"backend": "gloo"}
    if chosen.type == "cuda":
        settings = {"backend": "nccl", "device_id": chosen}
    with peer_failures():
        dist.init_process_group(timeout=timeout, **settings)
    failed = True
    try:
        yield chosen
        failed = False
    finally:
        # NCCL leaves together: one that failed would wait for peers that wait for it. They hear of it when it ends
        if not (failed and chosen.type == "cuda"):
            dist.destroy_process_group()


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of processes, W."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextmanager
def peer_failures() -> Iterator[None]:
    """Turn what the backends raise when a peer is gone into one sentence; anything else passes."""
    try:
        yield
    except RuntimeError as error:
        text = str(error).lower()
        if not (isinstance(error, dist.DistError) or (world() > 1 and any(sign in text for sign in _PEER_SIGNS))):
            raise
        raise Dic3lError(
            f"rank {rank()} of {world()}: lost contact with another process, which probably stopped with an error of "
            "its own (look further up in the output); start the same command again to go on from the last checkpoint"
        ) from error


def all_gather(x: Tensor, counts: Sequence[int]) -> Tensor:
    """The rows (n, ...) of every rank, in the order of ranks: (sum of counts, ...). counts: n of each rank."""
    if world() == 1:
        return x
    most = max(counts)
    padded = x.contiguous() if len(x) == most else torch.cat((x, x.new_zeros(most - len(x), *x.shape[1:])))
    rows = x.new_empty((world() * most, *x.shape[1:]))
    # torch 2.14 deprecates the older name of the same operation
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    with peer_failures():
        gather(rows, padded)
    if min(counts) == most:
        return rows
    return torch.cat([part[:count] for part, count in zip(rows.split(most), counts, strict=True)])


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Sequence[int]) -> Tensor:
        ctx.counts = counts
        return all_gather(x, counts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        # every rank has the same loss of all rows, so its gradient of the own ones is whole; DDP takes means over ranks
        start = sum(ctx.counts[: rank()])
        return gradients[0][start : start + ctx.counts[rank()]] * world(), None


def gather_with_gradient(x: Tensor, counts: Sequence[int]) -> Tensor:
    """As `all_gather`, for a loss of all rows that is the same on every rank: DDP's mean of gradients is its own."""
    return x if world() == 1 else _Gather.apply(x, counts)


def all_reduce(x: Tensor) -> Tensor:
    """The sum over ranks of x, as a new tensor."""
    total = x.detach().clone()
    if world() > 1:
        with peer_failures():
            dist.all_reduce(total)
    return total


def wrap_ddp(module: nn.Module) -> nn.Module:
    """`module` in DistributedDataParallel, or as it is in a world of one.

    Buffers are sent once, at the start: statistics of BatchNorm are local on purpose.
    """
    if world() == 1:
        return module
    known = inspect.signature(DistributedDataParallel).parameters
    buffers = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # the older name
    settings: dict[str, Any] = {buffers: False, "gradient_as_bucket_view": True}
    with peer_failures():
        return DistributedDataParallel(module, **settings)


def together(action: Callable[[], T], device: torch.device) -> T:
    """What `action` returns. Where it raises a Dic3lError on any rank, all stop: the first such rank says why.

    All ranks call it together; without it the others would wait for a peer that is gone.
    """
    if not dist.is_initialized():
        return action()
    value, error = None, None
    try:
        value = action()
    except Dic3lError as caught:
        error = caught
    failed = all_gather(torch.tensor([error is not None], device=device).double(), [1] * world())
    if not failed.any():
        return value  # type: ignore[return-value]
    first = int(failed.argmax())
    if error is not None and rank() == first:
        raise error
    raise JointError(f"process {first} of {world()} cannot begin; its own message says why")


def differs(x: Tensor) -> bool:
    """Whether ranks hold other values of x, of any shape: by its checksum. All ranks call it together."""
    checksums = all_gather(x.double().sum()[None], [1] * world())
    return not bool((checksums == checksums[0]).all())
