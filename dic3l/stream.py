"""How tiles become batches: a plan (`dic3l.order`), not the by-product of a shuffle buffer.

Sample i of a run (batch element j of step t is i = t * B + j) is the tile at place i mod N of epoch i // N. So epochs
follow one another without a gap, every epoch shows every tile exactly once, a batch may straddle two epochs, and
no tile is ever dropped. The batch of a step is a pure function of settings, corpus and step: the number of
processes decides who renders what, the number of threads how fast, neither what it is. To resume is to begin at
another step.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar

import cv2
import numpy as np
import torch

from dic3l.base import StepBatch
from dic3l.boxes import matched_boxes
from dic3l.config import Config
from dic3l.device_views import SpeckleNumbers, TileBatch, speckle_numbers, view_numbers
from dic3l.draws import permutation, tile_uniforms
from dic3l.edges import DRAWS as EDGE_DRAWS
from dic3l.edges import edge_squares, edge_strength, squares_in_views, whole_views
from dic3l.errors import ConfigError
from dic3l.groups import division
from dic3l.order import Order
from dic3l.speckle import DRAWS_PER_VIEW as SPECKLE_DRAWS
from dic3l.speckle import SpeckleParams, draw_speckle, speckle_view
from dic3l.views import DRAWS_PER_VIEW, ViewParams, draw_view, frames, render_one, sampling
from sarsense.shards import TileSpeckle

T = TypeVar("T")
_AHEAD = 2
"""batches prepared beyond those that the threads are at work on"""


class Tiles(Protocol):
    """What the trainer needs of a corpus; `sarsense.shards.TileReader` is one."""

    ids: np.ndarray
    """uint64 (N,): identity of each tile, the same in every corpus that holds it"""
    keys: list[str]
    contents: tuple[str, ...]
    """speckled, despeckled, or the one and the other: what each channel holds"""
    shape: tuple[int, int, int]
    """channels, height, width"""
    shard_of: np.ndarray
    """int64 (N,): the shard that holds each tile, 0, 1, ..."""

    def speckle(self) -> TileSpeckle:
        """Of each tile; asked for when a view changes speckle, or edges are told from it."""
        ...

    def expect(self, shards: np.ndarray) -> None:
        """These shards are going to be read, the first ones first."""
        ...

    def __len__(self) -> int: ...
    def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray: ...


@dataclass(frozen=True)
class _Drawn:
    """All that is random of a rank's part of a batch, and which of M tiles it needs."""

    tiles: np.ndarray
    """int64 (M,): indices, each once"""
    query: np.ndarray
    """int64 (n,): rows of `tiles` whose first views the rank holds"""
    key: np.ndarray
    """int64 (n,): rows whose second views it holds"""
    views: tuple[ViewParams, ViewParams]
    """first and second, of M tiles"""
    speckle: tuple[SpeckleParams, SpeckleParams]
    edges: np.ndarray
    """float64 (M,): a uniform number"""
    boxes: tuple[np.ndarray, np.ndarray, np.ndarray]
    """of M tiles, in both views, and which there are"""
    perm: np.ndarray
    """int64 (B,): of the whole batch, `StepBatch.perm`"""


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
        channels, height, width = tiles.shape
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
        wanted = config.speckle.active or config.method.contour == "edges"
        self._speckle = tiles.speckle() if wanted else None
        cv2.setNumThreads(1)  # parallel over batches instead, which costs no synchronisation
        self.tiles, self.config, self.rank, self.world = tiles, config, rank, world
        self.tile_hw = (height, width)
        self.order = Order(tiles.ids, tiles.shard_of, config.train.seed, config.train.window)
        self._first = 0
        """step that `batches` began with"""
        self._announced: deque[tuple[int, int]] = deque(maxlen=8)
        self._guard = threading.Lock()

    def plan(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Tile indices and epochs of the whole batch of a step, int64 (B,) each."""
        batch_size, count = self.config.train.batch_size, len(self.tiles)
        samples = np.arange(step * batch_size, (step + 1) * batch_size)
        epochs = samples // count
        indices = np.empty(batch_size, np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self.order.epoch(int(epoch))[samples[here] % count]
        return indices, epochs

    def tiles_of(self, step: int) -> np.ndarray:
        """The tiles of the whole batch of a step, in its order: uint8 (B, C, H, W)."""
        self._announce(step)
        return self.tiles.read(self.plan(step)[0])

    def _announce(self, step: int) -> None:
        """Tell the tiles which shards come next, once a window, when no batch of the window before is being made any
        more: its shards make room for those that come."""
        behind = max(min(step, self._first), step - self.config.train.loader_threads - _AHEAD)
        epoch, position = divmod(behind * self.config.train.batch_size, len(self.tiles))
        here, shards = self.order.ahead(epoch, position)
        with self._guard:
            if here in self._announced:
                return
            self._announced.append(here)
        for window in shards:
            self.tiles.expect(window)

    def batch(self, step: int) -> StepBatch:
        """This rank's part of the batch of a step: first views of its own tiles, second views of its shuffled ones."""
        drawn = self._draw(step)
        crop = self.config.views.crop_size
        views = np.empty((2, len(drawn.query), 1, crop, crop), np.uint8)
        tile = np.empty((1, len(self.tiles.contents), *self.tile_hw), np.uint8)
        seen = np.empty((1, *self.tile_hw), np.uint8)
        lies = [sampling(params, self.tile_hw, crop) for params in drawn.views]
        position = [{int(place): row for row, place in enumerate(rows)} for rows in (drawn.query, drawn.key)]
        strengths = []
        for place, number in enumerate(drawn.tiles):
            self.tiles.read(drawn.tiles[place : place + 1], out=tile)
            for side in range(2):
                if place not in position[side]:
                    continue
                # of both contents, and without a wish, the speckled one: what an encoder meets in the field
                source = tile[0, :1]
                if self._speckle is not None and self.config.speckle.active:
                    speckle_view(tile[0], self._speckle, int(number), drawn.speckle[side], place, seen[0])
                    source = seen
                render_one(source, drawn.views[side], lies[side], place, views[side, position[side][place]])
            strengths.append(self._edges(tile[0, 0], int(number)))
        return self._step_batch(drawn, strengths, torch.from_numpy(views[0]), torch.from_numpy(views[1]))

    def tile_batch(self, step: int) -> TileBatch:
        """The same, with the tiles themselves and the numbers of their views, which `TileBatch.rendered` makes."""
        drawn = self._draw(step)
        tiles = self.tiles.read(drawn.tiles)
        strengths = [self._edges(tile[0], int(number)) for tile, number in zip(tiles, drawn.tiles, strict=True)]
        speckle: tuple[SpeckleNumbers, ...] = ()
        if self._speckle is not None and self.config.speckle.active:
            known, channels = self._speckle, tiles.shape[1]
            speckle = tuple(speckle_numbers(params, known, drawn.tiles, channels) for params in drawn.speckle)
        crop, nothing = self.config.views.crop_size, torch.empty(0, dtype=torch.uint8)
        numbers = np.stack([view_numbers(params, self.tile_hw, crop) for params in drawn.views])
        return TileBatch(
            tiles=torch.from_numpy(tiles),
            rows=torch.from_numpy(np.stack((drawn.query, drawn.key))),
            views=torch.from_numpy(numbers),
            speckle=speckle,
            rest=self._step_batch(drawn, strengths, nothing, nothing),
        )

    def _draw(self, step: int) -> _Drawn:
        config = self.config
        self._announce(step)
        indices, epochs = self.plan(step)
        perm = self._shuffle(step)
        mine = self.division.rows(self.rank)
        places, row = np.unique(np.concatenate((np.arange(len(indices))[mine], perm[mine])), return_inverse=True)
        query, key = np.split(row, 2)  # rows of `places`, which both share where they can
        here = indices[places]

        seed, ids, epochs = config.train.seed, np.asarray(self.tiles.ids)[here], epochs[places]
        ends = np.cumsum((DRAWS_PER_VIEW, DRAWS_PER_VIEW, SPECKLE_DRAWS, SPECKLE_DRAWS, EDGE_DRAWS))
        draws = np.split(tile_uniforms(seed, epochs, ids, ends[-1]), ends[:-1], axis=1)
        first, second = (draw_view(part, self.tile_hw, config.views) for part in draws[:2])

        def box_draws(rows: np.ndarray, start: int, stop: int) -> np.ndarray:
            return tile_uniforms(seed, epochs[rows], ids[rows], ends[-1] + stop, ends[-1] + start)

        return _Drawn(
            tiles=here,
            query=query,
            key=key,
            views=(first, second),
            speckle=(draw_speckle(draws[2], config.speckle), draw_speckle(draws[3], config.speckle)),
            edges=draws[4][:, 0],
            boxes=matched_boxes(box_draws, first, second, config.views.crop_size, config.boxes),
            perm=perm,
        )

    def _step_batch(
        self, drawn: _Drawn, strengths: list[np.ndarray], query_views: torch.Tensor, key_views: torch.Tensor
    ) -> StepBatch:
        """strengths: of edges of each tile; not looked at where the contour branch does not."""
        config, (first, second) = self.config, drawn.views
        crop = config.views.crop_size
        if config.method.contour == "edges":
            squares = [
                edge_squares(strength, float(u), (first.rect[place], second.rect[place]), crop, config.edges)
                for place, (strength, u) in enumerate(zip(strengths, drawn.edges, strict=True))
            ]
            found = squares_in_views(squares, first, second, crop, config.edges)
        else:
            found = whole_views(len(drawn.tiles), crop)
        points_first, points_second, point_mask = map(torch.from_numpy, found)
        boxes_first, boxes_second, mask = map(torch.from_numpy, drawn.boxes)
        query, key = drawn.query, drawn.key
        return StepBatch(
            query_views=query_views,
            query_boxes=boxes_first[query],
            query_mask=mask[query],
            query_points=points_first[query],
            point_mask=point_mask[query],
            key_views=key_views,
            key_boxes=boxes_second[key],
            key_mask=mask[key],
            key_points=points_second[key],
            perm=torch.from_numpy(drawn.perm),
            query_frames=torch.from_numpy(frames(first).astype(np.float32)[query]),
            key_frames=torch.from_numpy(frames(second).astype(np.float32)[key]),
        )

    def _edges(self, codes: np.ndarray, number: int) -> np.ndarray:
        """Strength of the edges of a tile, uint8 (H, W), as the sensor saw it: the same points in every epoch's views,
        whatever these do to speckle and level. Nothing where the contour branch does not look at edges."""
        if self.config.method.contour != "edges" or self._speckle is None:
            return np.empty((0, 0), np.float32)
        return edge_strength(codes, float(self._speckle.step_db[number]), float(self._speckle.enl[number]))

    def _shuffle(self, step: int) -> np.ndarray:
        """Which tile's second view is key image j, int64 (B,); in order where no key depends on another's image."""
        count = self.config.train.batch_size
        if not self.config.method.shuffles:
            return np.arange(count)
        return permutation(self.config.train.seed, "shuffle", step, count)

    def batches(self, start: int, stop: int, make: Callable[[int], T]) -> Generator[tuple[int, T], None, None]:
        """(step, make(step)) for start <= step < stop, prepared ahead by `train.loader_threads` threads, a batch each.

        make: `batch`, `tile_batch`, or what is made of them. Close the generator to stop early. A batch's error is
        raised in its turn.
        """
        threads = self.config.train.loader_threads
        self._first = start
        pool = ThreadPoolExecutor(threads, thread_name_prefix="dic3l-loader")
        try:
            pending: deque[tuple[int, Future[T]]] = deque()
            ahead = start
            for step in range(start, stop):
                while ahead < min(stop, step + threads + _AHEAD):
                    pending.append((ahead, pool.submit(make, ahead)))
                    ahead += 1
                yield step, pending.popleft()[1].result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
