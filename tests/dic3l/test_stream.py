"""The order of tiles and the bytes of a batch: functions of settings, corpus and step, of nothing else."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import fields

import numpy as np
import pytest
import torch

from dic3l.base import StepBatch
from dic3l.boxes import matched_boxes
from dic3l.config import Config, resolve
from dic3l.draws import tile_uniforms
from dic3l.edges import DRAWS as EDGE_DRAWS
from dic3l.errors import ConfigError
from dic3l.roi import pool_boxes
from dic3l.speckle import DRAWS_PER_VIEW as SPECKLE_DRAWS
from dic3l.stream import Stream
from dic3l.views import DRAWS_PER_VIEW, draw_view, render
from sarsense.shards import TileSpeckle


class FakeTiles:
    """`count` tiles of smooth noise, made when they are read."""

    def __init__(self, count: int = 24, side: int = 48, channels: int = 1) -> None:
        rng = np.random.default_rng(0)
        self.ids = rng.integers(0, 2**63, count, dtype=np.uint64)
        self.contents = ("speckled",)
        self.keys = [f"tile-{index:03d}" for index in range(count)]
        coarse = rng.integers(1, 256, (count, channels, side // 8, side // 8), dtype=np.uint8)
        self._pixels = coarse.repeat(8, 2).repeat(8, 3)
        self.shape = (channels, side, side)
        self.shard_of = np.arange(count) // 5
        self.expected: list[list[int]] = []

    def expect(self, shards: np.ndarray) -> None:
        self.expected.append(shards.tolist())

    def __len__(self) -> int:
        return len(self.keys)

    def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        found = self._pixels[indices]
        if out is None:
            return found
        out[...] = found
        return out


def settings(**changes: object) -> Config:
    """Tiny views and batches; changes by section__key."""
    options = {"views.crop_size": 32, "boxes.min_side": 8.0, "boxes.count": 3, "boxes.candidates": 8}
    options |= {"train.batch_size": 8, "method.bn_groups": 2, "train.steps": 0, "train.epochs": 2.0}
    return resolve("smoke", options=options | {name.replace("__", "."): value for name, value in changes.items()})


def assert_equal(one: StepBatch, two: StepBatch) -> None:
    for field in fields(StepBatch):
        torch.testing.assert_close(getattr(one, field.name), getattr(two, field.name), rtol=0, atol=0)


def test_every_epoch_shows_every_tile_once_and_batches_straddle_epochs():
    stream = Stream(FakeTiles(19), settings())
    plans = [stream.plan(step) for step in range(19)]  # 19 batches of 8 = 8 epochs of 19
    indices, epochs = (np.concatenate(parts) for parts in zip(*plans, strict=True))
    assert Counter(zip(epochs.tolist(), indices.tolist(), strict=True)) == Counter(
        (epoch, index) for epoch in range(8) for index in range(19)
    )
    assert (np.diff(epochs) >= 0).all() and set(plans[2][1]) == {0, 1}
    assert not np.array_equal(indices[:19], indices[19:38])  # each epoch has an order of its own


def test_order_is_that_of_the_seed():
    tiles = FakeTiles()
    one, same, other = (Stream(tiles, settings(train__seed=seed)).plan(0)[0] for seed in (1, 1, 2))
    assert np.array_equal(one, same) and not np.array_equal(one, other)


def test_tiles_that_lie_in_other_shards_come_in_the_same_order():
    """A corpus put into shards anew holds the same tiles in another order: its digest, and the run, are the same."""
    tiles, anew = FakeTiles(), FakeTiles()
    there = np.random.default_rng(1).permutation(len(anew))
    anew.ids, anew.keys, anew._pixels = anew.ids[there], [anew.keys[i] for i in there], anew._pixels[there]
    streams = [Stream(each, settings()) for each in (tiles, anew)]
    for step in range(8):
        one, two = ([stream.tiles.keys[i] for i in stream.plan(step)[0]] for stream in streams)
        assert one == two
        assert streams[0].batch(step).query_views.equal(streams[1].batch(step).query_views)


def test_a_batch_is_what_its_tiles_alone_say():
    tiles, config = FakeTiles(), settings()
    stream = Stream(tiles, config)
    batch, (indices, epochs) = stream.batch(2), stream.plan(2)
    before = 2 * DRAWS_PER_VIEW + 2 * SPECKLE_DRAWS + EDGE_DRAWS
    u = tile_uniforms(config.train.seed, epochs, tiles.ids[indices], before + 8 * config.boxes.candidates)
    first = draw_view(u[:, :DRAWS_PER_VIEW], (48, 48), config.views)
    second = draw_view(u[:, DRAWS_PER_VIEW : 2 * DRAWS_PER_VIEW], (48, 48), config.views)
    numbers = u[:, before:]
    boxes = matched_boxes(lambda rows, start, stop: numbers[rows, start:stop], first, second, 32, config.boxes)
    pixels, perm = tiles.read(indices), batch.perm.numpy()
    assert sorted(perm) == list(range(8)) and list(perm) != list(range(8))
    assert np.array_equal(batch.query_views, render(pixels, first, 32))
    assert np.array_equal(batch.key_views, render(pixels, second, 32)[perm])
    assert np.array_equal(batch.query_boxes, boxes[0]) and np.array_equal(batch.key_boxes, boxes[1][perm])
    assert np.array_equal(batch.query_mask, boxes[2]) and np.array_equal(batch.key_mask, boxes[2][perm])
    assert boxes[2].any()
    assert batch.query_points.equal(torch.tensor([0.0, 0, 32, 32]).expand(8, 1, 4)) and batch.point_mask.all()


@pytest.mark.parametrize("world", [2, 3, 4])
@pytest.mark.parametrize("size", [8, 11])
def test_ranks_hold_parts_of_the_batch_of_one_process(world, size):
    tiles, config = FakeTiles(), settings(method__bn_groups=4, train__batch_size=size)
    whole = Stream(tiles, config).batch(2)
    parts = [Stream(tiles, config, rank, world).batch(2) for rank in range(world)]
    for field in fields(StepBatch):
        found = [getattr(part, field.name) for part in parts]
        joined = found[0] if field.name == "perm" else torch.cat(found)
        torch.testing.assert_close(joined, getattr(whole, field.name), rtol=0, atol=0)


@pytest.mark.parametrize("threads", [1, 3])
def test_batches_come_in_order_the_same_for_any_number_of_threads_and_any_start(threads):
    stream = Stream(FakeTiles(), settings(train__loader_threads=threads))
    found = dict(stream.batches(2, 7, stream.batch))
    assert list(found) == [2, 3, 4, 5, 6]
    for step, batch in found.items():
        assert_equal(batch, Stream(FakeTiles(), settings()).batch(step))


def test_an_error_of_a_batch_is_raised_in_its_turn_and_no_thread_stays():
    class Torn(FakeTiles):
        def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
            if indices[0] == torn:
                raise OSError("shard torn")
            return super().read(indices, out)

    torn = -1
    stream = Stream(Torn(), settings())
    torn = int(stream.plan(1)[0][3])
    batches = stream.batches(0, 6, stream.batch)
    assert next(batches)[0] == 0
    with pytest.raises(OSError, match="shard torn"):
        next(batches)
    assert not loader_threads()


def test_closing_early_ends_the_threads():
    stream = Stream(FakeTiles(), settings())
    batches = stream.batches(0, 1000, stream.batch)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()


def test_batches_are_prepared_ahead_but_not_without_bound():
    made = []
    stream = Stream(FakeTiles(), settings(train__loader_threads=1))
    batches = stream.batches(0, 100, lambda step: (made.append(step), stream.batch(step))[1])
    next(batches)
    deadline = time.monotonic() + 10
    while len(made) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert made == [0, 1, 2]
    batches.close()


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("dic3l-loader")]


@pytest.mark.parametrize(
    ("tiles", "world", "told"),
    [
        (FakeTiles(7), 1, "expected at most the 7 train tiles of the corpus, found 8"),
        (FakeTiles(channels=2), 1, "tiles: expected one polarisation, found 2"),
        (FakeTiles(), 3, "method.bn_groups: expected at least one for each of the 3 processes, found 2"),
    ],
)
def test_corpora_that_cannot_make_a_batch_are_refused(tiles, world, told):
    with pytest.raises(ConfigError, match=told):
        Stream(tiles, settings(), 0, world)


def test_views_far_larger_than_the_tiles_are_refused():
    """They would hold nothing but magnified pixels, and gigabytes of them."""
    with pytest.raises(
        ConfigError, match=r"crop_size: expected at most 96, twice the tiles of 48 x 48 pixels, found 97"
    ):
        Stream(FakeTiles(side=48), settings(views__crop_size=97), 0, 1)
    Stream(FakeTiles(side=48), settings(views__crop_size=96), 0, 1)


class BothTiles(FakeTiles):
    """Tiles of two contents: the second channel is smoother."""

    def __init__(self) -> None:
        super().__init__(channels=2)
        self.contents = ("speckled", "despeckled")

    def speckle(self) -> TileSpeckle:
        count = len(self)
        return TileSpeckle(
            np.full(count, 0.15), np.linspace(1, 12, count), np.full(count, -0.5), np.arange(count) % 5 > 0
        )


KNOWING = {"speckle__mix_probability": 0.4, "speckle__respeckle_probability": 0.3, "speckle__gain_db": 2.0}


def test_of_both_contents_the_published_views_are_of_the_speckled_one():
    class First(FakeTiles):
        def __init__(self) -> None:
            super().__init__()
            self._pixels = BothTiles()._pixels[:, :1]

    for step in (0, 3):
        assert_equal(Stream(BothTiles(), settings()).batch(step), Stream(First(), settings()).batch(step))


def test_views_that_know_speckle_do_not_depend_on_processes_threads_or_start():
    config = settings(**KNOWING)
    whole = {step: Stream(BothTiles(), config).batch(step) for step in range(4)}
    threaded = Stream(BothTiles(), settings(**KNOWING, train__loader_threads=3))
    for step, batch in threaded.batches(2, 4, threaded.batch):
        assert_equal(batch, whole[step])
    halves = [Stream(BothTiles(), config, rank, 2).batch(1) for rank in range(2)]
    for field in fields(StepBatch):
        found = [getattr(part, field.name) for part in halves]
        joined = found[0] if field.name == "perm" else torch.cat(found)
        torch.testing.assert_close(joined, getattr(whole[1], field.name), rtol=0, atol=0)
    plain = Stream(BothTiles(), settings()).batch(1)
    assert torch.equal(plain.query_boxes, whole[1].query_boxes)  # the same crops of other speckle
    assert not torch.equal(plain.query_views, whole[1].query_views)


def test_mixing_needs_both_contents():
    with pytest.raises(ConfigError, match="expected a corpus built with --content both, found speckled"):
        Stream(FakeTiles(), settings(**KNOWING))


def test_keys_that_are_not_shuffled_are_in_the_order_of_the_tiles():
    tiles = FakeTiles()
    shuffled, plain = (Stream(tiles, settings(method__key_norm=norm)).batch(1) for norm in ("shuffled", "averaged"))
    assert plain.perm.equal(torch.arange(8)) and not shuffled.perm.equal(plain.perm)
    for name in ("key_views", "key_boxes", "key_mask", "key_points"):
        assert getattr(shuffled, name).equal(getattr(plain, name)[shuffled.perm])
    half = Stream(tiles, settings(method__key_norm="averaged"), 1, 2)
    read = []
    tiles.read = lambda indices, out=None: (read.extend(indices), FakeTiles.read(tiles, indices, out))[1]
    half.batch(1)
    assert sorted(read) == sorted(half.plan(1)[0][4:])  # each tile once, and none of the other process


def test_edge_points_are_the_same_for_processes_and_threads_and_lie_in_both_views():
    config = settings(method__contour="edges", edges__side=4.0, edges__significance=3.0)
    whole = Stream(BothTiles(), config).batch(1)
    assert whole.point_mask.any() and whole.query_points.shape == whole.key_points.shape == (8, 8, 4)
    halves = [Stream(BothTiles(), config, rank, 2).batch(1) for rank in range(2)]
    for field in fields(StepBatch):
        found = [getattr(part, field.name) for part in halves]
        joined = found[0] if field.name == "perm" else torch.cat(found)
        assert joined.equal(getattr(whole, field.name))
    for points, mask in ((whole.query_points, whole.point_mask), (whole.key_points, whole.point_mask[whole.perm])):
        inside = points[mask]
        assert inside.min() >= 0 and inside.max() <= 32 and (inside[:, 2:] - inside[:, :2]).min() >= 4 - 1e-3
    later = Stream(BothTiles(), config).batch(4)
    assert not later.query_points.equal(whole.query_points)


class RampTiles(FakeTiles):
    """The code of a pixel is twice its column in every second tile, twice its row in the others.

    Twice, so that the mean of two neighbours is a code: halves are rounded to even, a bias of half a code.
    """

    def __init__(self) -> None:
        super().__init__(24, side=128)
        ramp = np.arange(0, 256, 2, dtype=np.uint8)[None].repeat(128, 0)
        self._pixels = np.stack([(ramp, ramp.T)[index % 2] for index in range(24)])[:, None]


@pytest.mark.parametrize("norm", ["shuffled", "averaged"])
def test_boxes_of_a_coordinate_ramp_agree_in_both_views(norm):
    """From the tile to the pooled box: both views of a box tell the same mean column and row, flips and all."""
    plain = {"views__jitter_probability": 0.0, "views__blur_probability": 0.0, "views__crop_size": 64}
    plain |= {"views__vertical_flip_probability": 0.5, "views__area": (0.2, 1.0), "method__key_norm": norm}
    batch = Stream(RampTiles(), settings(**plain, train__batch_size=24)).batch(0)
    means = [
        pool_boxes(views.double(), boxes, 1.0)[..., 0] / 2
        for views, boxes in ((batch.query_views, batch.query_boxes), (batch.key_views, batch.key_boxes))
    ]
    means[1] = means[1][torch.argsort(batch.perm)]
    found = (means[0] - means[1])[batch.query_mask].abs()
    assert len(found) > 60 and found.max() < 0.2  # of a pixel of the tile: codes are rounded
