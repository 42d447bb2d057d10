"""Which tile comes when, and how it becomes a batch: a plan, not the by-product of a shuffle buffer.

Sample i of a run (batch element j of step t is i = t * B + j) is tile permutation(epoch)[i mod N] of epoch i // N,
tiles numbered by their identities, so that a corpus that was put into other shards is shown in the same order. So
epochs follow one another without a gap, every epoch shows every tile exactly once, a batch may straddle two epochs, and
no tile is ever dropped. The batch of a step is a pure function of settings, corpus and step: the number of
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

from dic3l.boxes import matched_boxes
from dic3l.config import Config
from dic3l.draws import permutation, tile_uniforms
from dic3l.edges import DRAWS as EDGE_DRAWS
from dic3l.edges import edge_squares, edge_strength, squares_in_views, whole_views
from dic3l.errors import ConfigError
from dic3l.groups import division
from dic3l.method import StepBatch
from dic3l.speckle import DRAWS_PER_VIEW as SPECKLE_DRAWS
from dic3l.speckle import draw_speckle, speckle_view
from dic3l.views import DRAWS_PER_VIEW, ViewParams, draw_view, render_one
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
        """Of each tile; asked for when a view changes speckle, or edges are told from it."""
        ...

    def __len__(self) -> int: ...
    def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray: ...


class Stream:
    """The batches of one of `world` processes."""

    def __init__(self, tiles: Tiles, config: Config, rank: int = 0, world: int = 1) -> None:
        batch_size = config.train.batch_size
        self.division = division(config, world)
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
        self._edges = config.method.contour == "edges"
        self._speckle = tiles.speckle() if config.speckle.active or self._edges else None
        cv2.setNumThreads(1)  # parallel over batches instead, which costs no synchronisation
        self.tiles, self.config, self.rank, self.world = tiles, config, rank, world
        self.tile_hw = (height, width)
        self._by_identity = np.argsort(np.asarray(tiles.ids), kind="stable")
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
            order = self._by_identity[permutation(self.config.train.seed, "epoch", epoch, len(self.tiles))]
            # threads that need it at once compute the same
            self._orders = {**dict(list(self._orders.items())[1 - _EPOCHS_KEPT :]), epoch: order}
        return order

    def batch(self, step: int) -> StepBatch:
        """This rank's part of the batch of a step: first views of its own tiles, second views of its shuffled ones."""
        config = self.config
        indices, epochs = self.plan(step)
        perm = self._shuffle(step)
        mine = self.division.rows(self.rank)
        places, row = np.unique(np.concatenate((np.arange(len(indices))[mine], perm[mine])), return_inverse=True)
        query, key = np.split(row, 2)  # rows of `places`, which both share where they can
        here = indices[places]

        seed, ids, epochs = config.train.seed, np.asarray(self.tiles.ids)[here], epochs[places]
        ends = np.cumsum((DRAWS_PER_VIEW, DRAWS_PER_VIEW, SPECKLE_DRAWS, SPECKLE_DRAWS, EDGE_DRAWS))
        draws = np.split(tile_uniforms(seed, epochs, ids, ends[-1]), ends[:-1], axis=1)
        crop = config.views.crop_size
        first, second = (draw_view(part, self.tile_hw, config.views) for part in draws[:2])
        speckle = [draw_speckle(part, config.speckle) for part in draws[2:4]]

        def box_draws(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
            return tile_uniforms(seed, epochs[rows], ids[rows], ends[-1] + stop, ends[-1] + start)

        boxes_first, boxes_second, mask = _tensors(matched_boxes(box_draws, first, second, crop, config.boxes))

        views = np.empty((2, len(query), 1, crop, crop), np.uint8)
        tile = np.empty((1, len(self.tiles.contents), *self.tile_hw), np.uint8)
        seen = np.empty((1, *self.tile_hw), np.uint8)
        query_of = {int(place): position for position, place in enumerate(query)}
        key_of = {int(place): position for position, place in enumerate(key)}
        squares = []
        for place, number in enumerate(here):
            self.tiles.read(here[place : place + 1], out=tile)
            for side, params, positions in ((0, first, query_of), (1, second, key_of)):
                if place not in positions:
                    continue
                # of both contents, and without a wish, the speckled one: what an encoder meets in the field
                source = tile[0, :1]
                if self._speckle is not None and config.speckle.active:
                    speckle_view(tile[0], self._speckle, int(number), speckle[side], place, seen[0])
                    source = seen
                render_one(source, params, place, crop, out=views[side, positions[place]])
            if self._edges:
                squares.append(
                    self._edge_squares(tile[0, 0], int(number), float(draws[4][place, 0]), first, second, place)
                )
        if self._edges:
            found = squares_in_views(squares, first, second, crop, config.edges)
        else:
            found = whole_views(len(places), crop)
        points_first, points_second, point_mask = _tensors(found)
        return StepBatch(
            query_views=torch.from_numpy(views[0]),
            query_boxes=boxes_first[query],
            query_mask=mask[query],
            query_points=points_first[query],
            point_mask=point_mask[query],
            key_views=torch.from_numpy(views[1]),
            key_boxes=boxes_second[key],
            key_mask=mask[key],
            key_points=points_second[key],
            perm=torch.from_numpy(perm),
        )

    def _shuffle(self, step: int) -> np.ndarray:
        """Which tile's second view is key image j, int64 (B,); in order where no key depends on another's image."""
        count = self.config.train.batch_size
        if self.config.method.key_norm == "averaged":
            return np.arange(count)
        return permutation(self.config.train.seed, "shuffle", step, count)

    def _edge_squares(
        self, codes: np.ndarray, number: int, u: float, first: ViewParams, second: ViewParams, place: int
    ) -> np.ndarray:
        """Of the tile that the views `place` are of. Edges are those of the tile as the sensor saw it: with the same
        points in every epoch's views, whatever these do to speckle and level."""
        known = self._speckle
        if known is None:
            raise ConfigError("method.contour = edges: the speckle of the tiles is not known")
        strength = edge_strength(codes, float(known.step_db[number]), float(known.enl[number]))
        rects = first.rect[place], second.rect[place]
        return edge_squares(strength, u, rects, self.config.views.crop_size, self.config.edges)

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


def _tensors(arrays: tuple[np.ndarray, np.ndarray, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    first, second, mask = map(torch.from_numpy, arrays)
    return first, second, mask
