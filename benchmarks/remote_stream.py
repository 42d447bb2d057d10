"""Batches from a corpus in a store on loopback, 20 ms away, that fails one request of a hundred, against a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from dic3l.config import Config
from dic3l.stream import Stream
from sarsense.corpus import Corpus, open_corpus
from sarsense.places import RemotePath
from sarsense.shard_cache import ShardCache
from sarsense.shards import TileReader
from tests.object_store import object_store


def remote(corpus: Corpus, settings: Callable[..., Config], window: int = 4) -> None:
    """Two epochs: in the first the shards come from the store, the server running on the same cores."""
    config = settings(train__window=window, train__loader_threads=2)
    rows = []
    near = TileReader(corpus, "train")
    rows.append(("folder", *_epochs(near, config)))
    assert isinstance(corpus.root, Path)
    with object_store() as store, TemporaryDirectory() as scratch:
        os.environ.update(store.environment)
        store.put_folder(corpus.root, "bench/corpus")
        store.behave(share=0.01, seed=1, kinds=["busy", "reset", "reset_body"], latency=0.02)
        far = open_corpus("s3://bench/corpus")
        assert isinstance(far.root, RemotePath)
        cache = ShardCache(far.root, Path(scratch), sum(shard.bytes for shard in far.shards))
        reader = TileReader(far, "train", cache=cache)
        rows.append(("store", *_epochs(reader, config)))
        faults = sum(store.faults().values())
        cache.close()
    print(f"\nTwo views of each tile, windows of {window} of {len(near.shards)} shards, 2 threads; {faults} faults\n")
    print("| corpus | first epoch, tiles/s | second epoch, tiles/s | each tile once |\n| --- | ---: | ---: | --- |")
    for name, first, second, exact in rows:
        print(f"| {name} | {first:,.0f} | {second:,.0f} | {'yes' if exact else 'NO'} |")
    print(f"\nThe store gives {rows[1][2] / rows[0][2]:.2f} of the folder once shards are there, "
          f"{rows[1][1] / rows[0][1]:.2f} until then.")  # fmt: skip


def _epochs(tiles: TileReader, config: Config) -> tuple[float, float, bool]:
    stream = Stream(tiles, config)
    steps, batch = len(tiles) // config.train.batch_size, config.train.batch_size
    rates, seen = [], []
    for epoch in range(2):
        began = time.perf_counter()
        for step, _ in stream.batches(epoch * steps, (epoch + 1) * steps, stream.batch):
            seen.append(stream.plan(step)[0])
        rates.append(steps * batch / (time.perf_counter() - began))
    counts = np.bincount(np.concatenate(seen), minlength=len(tiles))
    return rates[0], rates[1], bool((counts == 2).all())
