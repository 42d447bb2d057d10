"""Batches where the networks are: made on the host for a CPU; for CUDA sent as tiles and made there, one step ahead.

On CUDA a batch is one piece of page-locked memory, so that it takes one copy, and that copy and the making of its views
run on a stream of their own beside the step before.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from dic3l.base import StepBatch
from dic3l.device_views import TileBatch
from dic3l.profile import span
from dic3l.speckle import speckle_table
from dic3l.stream import Stream
from dic3l.views import blur_radius

T = TypeVar("T")
_ALIGN = 64
"""bytes that tensors begin at multiples of: enough for every dtype"""


def feed(stream: Stream, start: int, stop: int, device: torch.device) -> Generator[tuple[int, StepBatch], None, None]:
    """(step, batch) for start <= step < stop, on `device`. Close the generator to stop early."""
    where, crop = stream.config.train.render, stream.config.views.crop_size
    blur = min(blur_radius(stream.config.views.blur_sigma[1]), crop - 1)
    table = None
    if stream.config.speckle.active:
        table = torch.from_numpy(speckle_table(stream.config.speckle)).float().to(device)
    as_tiles = where == "device" or (where == "auto" and device.type == "cuda")

    def sent(batch: Packed[StepBatch] | Packed[TileBatch]) -> StepBatch:
        with span("copy"):
            moved = batch.to(device)
        if isinstance(moved, StepBatch):
            return moved
        with span("views"):
            return moved.rendered(crop, blur, table)

    make = stream.tile_batch if as_tiles else stream.batch
    if device.type == "cuda":
        with closing(stream.batches(start, stop, lambda step: packed(make(step)))) as batches:
            yield from _ahead(batches, sent)
    elif as_tiles:
        with closing(stream.batches(start, stop, stream.tile_batch)) as batches:
            yield from ((step, batch.rendered(crop, blur, table)) for step, batch in batches)
    else:
        yield from stream.batches(start, stop, stream.batch)


@dataclass(frozen=True)
class Packed(Generic[T]):
    """A batch whose tensors are parts of one piece of memory."""

    memory: Tensor
    """uint8 (bytes,)"""
    batch: T

    def to(self, device: torch.device) -> T:
        """The batch on `device`, by one copy; from page-locked memory without waiting for it."""
        moved = self.memory.to(device, non_blocking=True)
        if moved is self.memory:
            return self.batch
        begin = self.memory.data_ptr()

        def there(tensor: Tensor) -> Tensor:
            return _part(moved, tensor.data_ptr() - begin if tensor.numel() else 0, tensor)

        return _mapped(self.batch, there)


def packed(batch: T) -> Packed[T]:
    """A copy of a batch (of tensors, in dataclasses and tuples) in one piece of memory, page-locked where there is
    CUDA."""
    tensors: list[Tensor] = []
    _mapped(batch, lambda tensor: tensors.append(tensor) or tensor)
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.nbytes // _ALIGN) * _ALIGN
    memory = torch.empty(end, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    place = iter(places)

    def copied(tensor: Tensor) -> Tensor:
        return _part(memory, next(place), tensor).copy_(tensor)

    return Packed(memory, _mapped(batch, copied))


def _part(memory: Tensor, place: int, like: Tensor) -> Tensor:
    return memory[place : place + like.nbytes].view(like.dtype).view(like.shape)


def _mapped(value: Any, change: Any) -> Any:
    """`value` with each of its tensors changed."""
    if isinstance(value, Tensor):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{field.name: _mapped(getattr(value, field.name), change) for field in fields(value)})
    return tuple(_mapped(part, change) for part in value) if isinstance(value, tuple) else value


def _ahead(batches: Iterator[tuple[int, Any]], make: Callable[[Any], StepBatch]) -> Iterator[tuple[int, StepBatch]]:
    """On a stream of its own, a batch before it is asked for: copied and made while the step before is computed."""
    side = torch.cuda.Stream()

    def begun(step: int, batch: Any) -> tuple[int, StepBatch, torch.cuda.Event]:
        with torch.cuda.stream(side):
            made = torch.cuda.Event()
            ready = make(batch)
            made.record()
            return step, ready, made

    waiting: tuple[int, StepBatch, torch.cuda.Event] | None = None
    failed: Exception | None = None
    while failed is None:
        try:
            upcoming = begun(*next(batches))
        except Exception as error:  # raised in its turn, after the step before; the end, too
            upcoming, failed = None, error
        if waiting is not None:
            yield _joined(*waiting)
        waiting = upcoming
    if not isinstance(failed, StopIteration):
        raise failed


def _joined(step: int, batch: StepBatch, made: torch.cuda.Event) -> tuple[int, StepBatch]:
    """The batch, for the current stream: which waits for it, and keeps its memory until it is done with it."""
    current = torch.cuda.current_stream()
    current.wait_event(made)

    def kept(tensor: Tensor) -> Tensor:
        tensor.record_stream(current)
        return tensor

    return step, _mapped(batch, kept)
