"""Which tile comes when, and how it becomes a batch: a plan, not the by-product of a shuffle buffer.

Sample i of a run (batch element j of step t is i = t * B + j) is tile permutation(epoch)[i mod N] of epoch i // N. So
epochs follow one another without a gap, every epoch shows every tile exactly once, a batch may straddle two epochs,
and no tile is ever dropped. The batch of a step is a pure function of settings, corpus and step: the number of
processes decides who renders what, the number of threads how fast, neither what it is. To resume is to begin at
another step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import cv2
import numpy as np
import torch

from dic3l.boxes import box_draws, matched_boxes
from dic3l.config import Config
from dic3l.draws import permutation, tile_uniforms
from dic3l.errors import ConfigError
from dic3l.method import StepBatch
from dic3l.speckle import DRAWS_PER_VIEW as SPECKLE_DRAWS
from dic3l.speckle import draw_speckle, speckle_view
from dic3l.views import DRAWS_PER_VIEW, draw_view, render_one
from sarsense.shards import TileSpeckle

_AHEAD = 2
"""batches prepared beyond those that the threads are at work on"""
_EPOCHS_KEPT = 2
"""permutations in memory: a batch straddles two epochs at most"""


class Tiles(Protocol):
    """What the trainer needs of a corpus; `sarsense.shards.TileReader` is one."""

    ids: np.ndarray
    """uint64 (N,): identity of each tile, the same in every corpus that holds it"""
    keys: list[str]
    contents: tuple[str, ...]
    """speckled, despeckled, or the one and the other: what each channel holds"""

    def speckle(self) -> TileSpeckle:
        """Of each tile; asked for when a view changes speckle."""
        ...

    def __len__(self) -> int: ...
    def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray: ...


class Stream:
    """The batches of one of `world` processes."""

    def __init__(self, tiles: Tiles, config: Config, rank: int = 0, world: int = 1) -> None:
        batch_size = config.train.batch_size
        if batch_size % world:
            raise ConfigError(f"train.batch_size: expected a multiple of the {world} processes, found {batch_size}")
        if len(tiles) < batch_size:
            raise ConfigError(
                f"train.batch_size: expected at most the {len(tiles)} train tiles of the corpus, found {batch_size}; "
                "give a smaller --batch-size, or build a larger corpus"
            )
        channels, height, width = tiles.read(np.zeros(1, np.int64)).shape[1:]
        crop_size, most = config.views.crop_size, 2 * min(height, width)
        if crop_size > most:
            raise ConfigError(
                f"views.crop_size: expected at most {most}, twice the tiles of {height} x {width} pixels, "
                f"found {crop_size}; give a smaller --crop-size, or build larger tiles"
            )
        if channels != len(tiles.contents):
            raise ConfigError(
                f"tiles: expected one polarisation, found {channels // len(tiles.contents)}; build the corpus with "
                "--bands single"
            )
        if config.speckle.needs_filtered and tiles.contents != ("speckled", "despeckled"):
            raise ConfigError(
                "speckle.mix_probability and speckle.respeckle_probability: expected a corpus built with --content "
                f"both, found {' and '.join(tiles.contents)}; set them to 0, or build the corpus again"
            )
        self._speckle = tiles.speckle() if config.speckle.active else None
        cv2.setNumThreads(1)  # parallel over batches instead, which costs no synchronisation
        self.tiles, self.config, self.rank, self.world = tiles, config, rank, world
        self.tile_hw = (height, width)
        self._orders: dict[int, np.ndarray] = {}

    def plan(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tile indices and epochs of the whole batch of a step, int64 (B,) each."""
        batch_size, count = self.config.train.batch_size, len(self.tiles)
        samples = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs = samples // count
        indices = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[samples[here] % count]
        return indices, epochs

    def _order(self, epoch: int) -> np.ndarray:
        order = self._orders.get(epoch)
        if order is None:
            order = permutation(self.config.train.seed, "epoch", epoch, len(self.tiles))
            # threads that need it at once compute the same
            self._orders = {**dict(list(self._orders.items())[1 - _EPOCHS_KEPT :]), epoch: order}
        return order

    def batch(self, step: int) -> StepBatch:
        """This rank's part of the batch of a step: first views of its own tiles, second views of its shuffled ones."""
        config = self.config
        indices, epochs = self.plan(step)
        perm = permutation(config.train.seed, "shuffle", step, len(indices))
        mine = slice(self.rank * len(indices) // self.world, (self.rank + 1) * len(indices) // self.world)
        places, row = np.unique(np.concatenate((np.arange(len(indices))[mine], perm[mine])), return_inverse=True)
        query, key = np.split(row, 2)  # rows of `places`, which both share where they can

        ids = np.asarray(self.tiles.ids)[indices[places]]
        of_boxes = box_draws(config.boxes)
        count = 2 * DRAWS_PER_VIEW + of_boxes + 2 * SPECKLE_DRAWS
        draws = tile_uniforms(config.train.seed, epochs[places], ids, count)
        draws, of_speckle = np.split(draws, [2 * DRAWS_PER_VIEW + of_boxes], axis=1)
        crop = config.views.crop_size
        first = draw_view(draws[:, :DRAWS_PER_VIEW], self.tile_hw, config.views)
        second = draw_view(draws[:, DRAWS_PER_VIEW : 2 * DRAWS_PER_VIEW], self.tile_hw, config.views)
        boxes = matched_boxes(draws[:, 2 * DRAWS_PER_VIEW :], first, second, crop, config.boxes)
        boxes_first, boxes_second, mask = (torch.from_numpy(array) for array in boxes)

        speckle = [draw_speckle(part, config.speckle) for part in np.split(of_speckle, 2, axis=1)]

        views = np.empty((2, len(query), 1, crop, crop), np.uint8)
        tile = np.empty((1, len(self.tiles.contents), *self.tile_hw), np.uint8)
        seen = np.empty((1, *self.tile_hw), np.uint8)
        query_of = {int(place): position for position, place in enumerate(query)}
        key_of = {int(place): position for position, place in enumerate(key)}
        for place in range(len(places)):
            self.tiles.read(indices[places[place : place + 1]], out=tile)
            for side, params, positions in ((0, first, query_of), (1, second, key_of)):
                if place not in positions:
                    continue
                # of both contents, and without a wish, the speckled one: what an encoder meets in the field
                source = tile[0, :1]
                if self._speckle is not None:
                    number = int(indices[places[place]])
                    speckle_view(tile[0], self._speckle, number, speckle[side], place, seen[0])
                    source = seen
                render_one(source, params, place, crop, out=views[side, positions[place]])
        return StepBatch(
            query_views=torch.from_numpy(views[0]),
            query_boxes=boxes_first[query],
            query_mask=mask[query],
            key_views=torch.from_numpy(views[1]),
            key_boxes=boxes_second[key],
            key_mask=mask[key],
            perm=torch.from_numpy(perm),
        )

    def batches(self, start: int, stop: int, pin: bool = False) -> Generator[tuple[int, StepBatch], None, None]:
        """(step, batch) for start <= step < stop, prepared ahead by `train.loader_threads` threads, a batch each.

        pin: in page-locked memory, for CUDA. Close the generator to stop early. A batch's error is raised in its turn.
        """
        threads = self.config.train.loader_threads

        def prepare(step: int) -> StepBatch:
            batch = self.batch(step)
            return batch.pin_memory() if pin else batch

        pool = ThreadPoolExecutor(threads, thread_name_prefix="dic3l-loader")
        try:
            pending: deque[tuple[int, Future[StepBatch]]] = deque()
            ahead = start
            for step in range(start, stop):
                while ahead < min(stop, step + threads + _AHEAD):
                    pending.append((ahead, pool.submit(prepare, ahead)))
                    ahead += 1
                yield step, pending.popleft()[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
