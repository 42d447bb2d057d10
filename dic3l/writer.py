"""Checkpoints written while the next steps are computed.

The state is copied to host memory between two steps; a thread writes it. The file before stays until the new one is
whole under its name (`dic3l.checkpoint.save`), so a full disk or a kill costs the newest state, never the last good
one.
"""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dic3l.checkpoint import Checkpoint, save
from dic3l.config import TrainConfig


class CheckpointWriter:
    """One file is written at a time: a save waits for the one before it."""

    def __init__(self, run: Path, config: TrainConfig) -> None:
        self._run, self._config = run, config
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="dic3l-checkpoint")
        self._pending: Future[Path] | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Begin to write a copy of `checkpoint`. Raises the CheckpointError of the one before it."""
        self.wait()
        copied = Checkpoint(**{field.name: _copy(getattr(checkpoint, field.name)) for field in fields(checkpoint)})
        self._pending = self._pool.submit(save, self._run, copied, self._config.keep, self._config.keep_every)

    def failed(self, wait: bool = False) -> bool:
        """Whether the newest file could not be written, as far as that is known. wait: until it is."""
        pending = self._pending
        return pending is not None and (wait or pending.done()) and pending.exception() is not None

    def wait(self) -> None:
        """Until the newest file is written. Raises CheckpointError where that failed."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True)
        if kind is None:
            self.wait()


def _copy(value: Any) -> Any:
    """Tensors in containers of any depth, copied to host memory; the rest as it is."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().clone() if value.device.type == "cpu" else value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _copy(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copy(item) for item in value)
    return value
