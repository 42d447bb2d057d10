"""The plan of an epoch: each tile once, mixed, the same for whoever asks."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dic3l.order import Order

SHARD_OF = np.sort(np.random.default_rng(0).integers(0, 7, 60))


def order(window: int = 0, seed: int = 3) -> Order:
    return Order(np.random.default_rng(1).integers(0, 2**63, 60, dtype=np.uint64), SHARD_OF, seed, window)


@given(count=st.integers(1, 80), shards=st.integers(1, 12), window=st.integers(0, 14), epoch=st.integers(0, 3))
def test_an_epoch_shows_every_tile_once_and_keeps_windows_together(count, shards, window, epoch):
    shard_of = np.sort(np.random.default_rng(1).integers(0, shards, count))
    shard_of = np.unique(shard_of, return_inverse=True)[1]  # shards without tiles are no shards
    found = Order(np.arange(count, dtype=np.uint64), shard_of, 0, window)
    tiles = found.epoch(epoch)
    assert sorted(tiles) == list(range(count))
    np.testing.assert_array_equal(tiles, Order(np.arange(count, dtype=np.uint64), shard_of, 0, window).epoch(epoch))
    if 0 < window <= shard_of.max():
        seen: list[int] = []
        for shard in shard_of[tiles]:
            if shard not in seen:
                seen.append(int(shard))
        place = {shard: number for number, shard in enumerate(found.shards(epoch))}
        windows = [place[shard] // window for shard in shard_of[tiles]]
        assert windows == sorted(windows) and len(seen) == shard_of.max() + 1


@pytest.mark.parametrize("window", [0, 2])
def test_epochs_and_seeds_have_orders_of_their_own(window):
    here = order(window=window)
    assert not np.array_equal(here.epoch(0), here.epoch(1))
    assert not np.array_equal(here.epoch(0), order(window=window, seed=4).epoch(0))


def test_a_window_of_all_shards_is_the_global_order():
    np.testing.assert_array_equal(order(window=7).epoch(2), order().epoch(2))
    assert not np.array_equal(order(window=6).epoch(2), order().epoch(2))


def test_shards_are_asked_for_before_their_tiles_come():
    here = order(window=2)
    for epoch in (0, 1):
        tiles, windows = here.epoch(epoch), []
        for position, tile in enumerate(tiles):
            key, (now, after) = here.ahead(epoch, position)
            assert SHARD_OF[tile] in now
            windows.append((key, tuple(now), tuple(after)))
        distinct = list(dict.fromkeys(windows))
        assert [key for key, *_ in distinct] == [(epoch, number) for number in range(4)]
        for (_, _, after), (_, now, _) in pairwise(distinct):
            assert after == now
        assert distinct[-1][2] == tuple(here.ahead(epoch + 1, 0)[1][0])


def test_places_of_an_epoch_say_nothing_of_the_scene():
    """Shards hold tiles of all scenes at random: a window of two of them is mixed as well as all are."""
    rng = np.random.default_rng(0)
    scenes, shard_of = rng.integers(0, 8, 4000), np.repeat(np.arange(20), 200)
    ids = rng.integers(0, 2**63, 4000, dtype=np.uint64)
    places = np.arange(4000.0)
    for window in (0, 2):
        means = [
            np.bincount(scenes[tiles], places) / np.bincount(scenes)
            for tiles in (Order(ids, shard_of, seed, window).epoch(0) for seed in range(10))
        ]
        # of so many tiles a scene's mean place is off the middle by chance alone
        expected = places.std() / np.sqrt(500)
        assert np.sqrt(np.mean((np.array(means) - places.mean()) ** 2)) < 1.3 * expected
