"""Batches from a corpus in a store on loopback, 20 ms away, that fails one request of a hundred, against a folder."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from benchmarks.corpora import built_corpus
from dic3l.config import Config
from dic3l.stream import Stream
from sarsense import remote
from sarsense.corpus import Corpus, open_corpus
from sarsense.places import RemotePath
from sarsense.shard_cache import ShardCache
from sarsense.shards import TileReader
from tests.object_store import object_store

_WINDOW = 4
"""shards whose tiles are mixed"""


def from_store(settings: Callable[..., Config]) -> None:
    """Two epochs of views, once on a disk that holds half of the shards, so that both epochs fetch. The server runs on
    the same cores."""
    config = settings(train__window=_WINDOW, train__loader_threads=2)
    with built_corpus(shard_mib=8) as corpus, object_store() as store, TemporaryDirectory() as scratch:
        assert isinstance(corpus.root, Path)
        near = TileReader(corpus, "train")
        rows = [("folder", *_epochs(near, config))]
        os.environ.update(store.environment)
        store.put_folder(corpus.root, "bench/corpus")
        store.behave(share=0.01, seed=1, kinds=["busy", "reset", "reset_body"], latency=0.02)
        far = open_corpus("s3://bench/corpus")
        assert isinstance(far.root, RemotePath)
        size = sum(shard.bytes for shard in far.shards)
        for name, limit in (("store, all shards fit on the disk", size), ("store, half of them fit", size // 2)):
            with closing(ShardCache(far.root, Path(scratch) / name[-8:].strip(), limit)) as cache:
                rows.append((name, *_epochs(TileReader(far, "train", cache=cache), config)))
        faults = sum(store.faults().values())
        fetched = _fetched_alone(far, Path(scratch) / "alone")
    told = f"windows of {_WINDOW} of {len(near.shards)} shards of 8 MiB, 2 threads; {faults} faults"
    print(f"\nTwo views of each tile, {told}\n")
    print("| corpus | first window | rest of the first epoch | second epoch | each tile once |")
    print("| --- | ---: | ---: | ---: | --- |")
    for name, *rates, exact in rows:
        print(f"| {name} | {' | '.join(f'{rate:,.0f}' for rate in rates)} | {'yes' if exact else 'NO'} |")
    print(f"| the fetching alone, 4 at once, nothing else at work | | {fetched:,.0f} | | |")
    print(f"\nTiles/s. Once shards are there, the store gives {rows[1][3] / rows[0][3]:.2f} of the folder.")


def _epochs(tiles: TileReader, config: Config) -> tuple[float, float, float, bool]:
    """Tiles/s of the first window, of the rest of the first epoch, of the second; whether each tile came once."""
    stream = Stream(tiles, config)
    batch = config.train.batch_size
    steps = len(tiles) // batch
    first = steps * _WINDOW // len(tiles.shards)
    seen, times = [], [time.perf_counter()]
    for step, _ in stream.batches(0, 2 * steps, stream.batch):
        seen.append(stream.plan(step)[0])
        if step + 1 in (first, steps, 2 * steps):
            times.append(time.perf_counter())
    counts = [np.bincount(np.concatenate(part), minlength=len(tiles)) for part in (seen[:steps], seen[steps:])]
    took = np.diff(times)
    exact = all((count == 1).all() for count in counts)
    return first * batch / took[0], (steps - first) * batch / took[1], steps * batch / took[2], exact


def _fetched_alone(far: Corpus, folder: Path) -> float:
    """Tiles/s of what comes through the same requests, without a check, a disk to flush, or views."""
    from concurrent.futures import ThreadPoolExecutor

    folder.mkdir()
    began = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda shard: remote.fetch((far.root / shard.path).path, folder / shard.sha256), far.shards))  # type: ignore[union-attr]
    return sum(shard.tiles for shard in far.shards) / (time.perf_counter() - began)
