"""The queue of keys: the last K key vectors, oldest replaced first."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dic3l.errors import CheckpointError


class KeyQueue(nn.Module):
    """A ring buffer of unit vectors, `keys` (K, D), filled with seeded random ones to begin with.

    Keep it out of DDP: every rank enqueues the same keys of the whole batch, so that the queues stay identical
    without being sent. The position is an integer on the host, so that no step waits for the device.
    """

    keys: Tensor

    def __init__(self, size: int, dim: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.register_buffer("keys", F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        self.pointer = 0
        """row that the next key replaces"""
        self.enqueued = 0
        """keys enqueued since the beginning"""

    @property
    def filled(self) -> int:
        """Rows that hold keys of images, at most K; the others are still random."""
        return min(self.enqueued, len(self.keys))

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Replace the oldest rows by `keys` (B, D), any B; of more than K keys the last K stay."""
        size, count = len(self.keys), len(keys)
        kept = keys[-size:].to(self.keys.dtype)
        start = (self.pointer + count - len(kept)) % size
        before_end = min(len(kept), size - start)
        self.keys[start : start + before_end] = kept[:before_end]
        self.keys[: len(kept) - before_end] = kept[before_end:]
        self.pointer = (self.pointer + count) % size
        self.enqueued += count

    def newest(self, count: int) -> Tensor:
        """The last `count` keys of images, at most: (m, D), the newest last."""
        kept = min(count, self.filled)
        rows = torch.arange(self.pointer - kept, self.pointer, device=self.keys.device) % len(self.keys)
        return self.keys[rows]

    def get_extra_state(self) -> dict[str, int]:
        return {"pointer": self.pointer, "enqueued": self.enqueued}

    def set_extra_state(self, state: dict[str, int]) -> None:
        pointer = state["pointer"]
        if not 0 <= pointer < len(self.keys):
            raise CheckpointError(f"queue: position {pointer} found, expected one below {len(self.keys)}")
        self.pointer, self.enqueued = pointer, state["enqueued"]
