"""Which tile stands where in an epoch: a plan, a pure function of corpus, seed and epoch.

By default all tiles are mixed, numbered by their identities, so that a corpus that was put into other shards is shown
in the same order. A corpus that is read from a store, and is larger than the disk that keeps its shards, is mixed in
windows of so many shards instead (`train.window`): the shards in a random order, and within each window all of its
tiles in a random order. Shards hold tiles of all scenes in random order from their build on, so a window is a random
sample of the corpus; what that leaves of order is measured in `benchmarks.stream`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dic3l.draws import permutation

_EPOCHS_KEPT = 2
"""in memory: a batch straddles two epochs at most"""


class Order:
    """Of N tiles. Safe to use from several threads: those that need an epoch at once compute the same."""

    def __init__(self, ids: np.ndarray, shard_of: np.ndarray, seed: int, window: int) -> None:
        """ids: uint64 (N,), identities; shard_of: int64 (N,), shard of each tile, 0, 1, ...; window: shards, 0 = all
        of them."""
        self._by_identity = np.argsort(np.asarray(ids), kind="stable")
        self._shard_of, self._seed = np.asarray(shard_of), seed
        self._window = window if window < self._shards else 0
        self._known: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._by_identity)

    @property
    def _shards(self) -> int:
        return int(self._shard_of.max(initial=-1)) + 1

    def epoch(self, number: int) -> np.ndarray:
        """Tiles in the order of an epoch, int64 (N,): a permutation."""
        order = self._known.get(number)
        if order is None:
            order = self._made(number)
            self._known = {**dict(list(self._known.items())[1 - _EPOCHS_KEPT :]), number: order}
        return order

    def _made(self, number: int) -> np.ndarray:
        if not self._window:
            return self._by_identity[permutation(self._seed, "epoch", number, len(self))]
        rank = np.empty(self._shards, np.int64)
        rank[self.shards(number)] = np.arange(self._shards)
        window = rank[self._shard_of[self._by_identity]] // self._window
        parts = []
        for index in range(int(window.max()) + 1):
            mine = self._by_identity[window == index]
            parts.append(mine[permutation(self._seed, f"epoch {number} window", index, len(mine))])
        return np.concatenate(parts)

    def shards(self, number: int) -> np.ndarray:
        """Shards in the order in which an epoch comes to need them, int64: within a window, any."""
        return permutation(self._seed, "shards", number, self._shards) if self._window else np.arange(self._shards)

    def ahead(self, number: int, position: int) -> tuple[tuple[int, int], Sequence[np.ndarray]]:
        """(epoch, window) of a position of an epoch; shards of that window and of the one that comes after it."""
        if not self._window:
            return (number, 0), [self.shards(number)]
        shards = self.shards(number)
        counts = np.bincount(self._shard_of, minlength=self._shards)[shards]
        ends = np.cumsum([counts[first : first + self._window].sum() for first in range(0, len(shards), self._window)])
        here = int(np.searchsorted(ends, position, side="right"))
        first = here * self._window
        after = shards[first + self._window : first + 2 * self._window]
        return (number, here), [
            shards[first : first + self._window],
            after if len(after) else self.shards(number + 1)[: self._window],
        ]
