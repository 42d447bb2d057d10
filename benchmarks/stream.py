"""Tiles from shards to the trainer: against webdataset in DataLoader workers, folders of PNG, and copying the bytes.

python -m benchmarks.stream            local shards, warm
python -m benchmarks.stream --remote   also from a store 20 ms away that fails 1 per cent of the time (moto)
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.corpora import built_corpus
from benchmarks.timing import best_seconds, print_rates
from benchmarks.views import as_picture, published_transform
from dic3l.config import Config, resolve
from dic3l.order import Order
from dic3l.stream import Stream
from sarsense.corpus import Corpus
from sarsense.shards import TileReader

TILE, CROP, BATCH, PNGS = 512, 448, 64, 96


def settings(**changes: object) -> Config:
    options = {"train.batch_size": BATCH, "views.crop_size": CROP, "method.bn_groups": 1, "boxes.min_side": 32.0}
    return resolve("paper", options={**options, **{name.replace("__", "."): value for name, value in changes.items()}})


def reading(corpus: Corpus, passes: int = 4) -> None:
    """Batches of uint8 tiles in this process."""
    tiles = TileReader(corpus, "train")
    steps = passes * len(tiles) // BATCH
    count = steps * BATCH
    maps = [np.memmap(corpus.root / shard.path, np.uint8, "r") for shard in tiles.shards]
    offsets = corpus.tiles("train", columns=["offset"])["offset"].to_numpy()
    batch = np.empty((BATCH, 1, TILE, TILE), np.uint8)
    order = np.concatenate([np.random.default_rng(index).permutation(len(tiles)) for index in range(passes)])[:count]
    shards = [str(corpus.root / shard.path) for shard in tiles.shards]

    def ours(threads: int) -> Callable[[], None]:
        stream = Stream(tiles, settings(train__loader_threads=threads))

        def run() -> None:
            for _ in stream.batches(0, steps, stream.tiles_of):
                pass

        return run

    def by_webdataset(workers: int) -> Callable[[], None]:
        def run() -> None:
            data = webdataset.WebDataset(passes * shards, shardshuffle=100, seed=0).shuffle(1000).decode()
            data = data.to_tuple("npy")
            loader = DataLoader(data.batched(BATCH), batch_size=None, num_workers=workers)
            for _ in loader:
                pass

        return run

    def limit() -> None:
        for number, index in enumerate(order):
            start = offsets[index]
            row = maps[tiles.shard_of[index]][start : start + TILE**2]
            batch[number % BATCH] = row.reshape(1, TILE, TILE)

    ways = {
        "dic3l.stream, global random order, 1 thread": ours(1),
        "dic3l.stream, global random order, 2 threads": ours(2),
        "webdataset, shuffle(1000), decoded, 2 DataLoader workers": by_webdataset(2),
        "limit: mmap, index, copy into one batch": limit,
    }
    seconds = best_seconds(ways)
    slow = "webdataset, shuffle(1000), decoded, 2 DataLoader workers"
    print_rates(f"Tiles of {TILE} x {TILE} from warm shards to batches of {BATCH}", "tiles/s", count, seconds)
    print(f"\n{seconds[slow] / seconds['dic3l.stream, global random order, 2 threads']:.1f} times webdataset.")


class Pngs(Dataset):
    """Two views of each picture, as published."""

    def __init__(self, paths: list[Path], crop: int) -> None:
        self._paths, self._transform = paths, published_transform(crop)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        picture = as_picture(np.array(Image.open(self._paths[index])))
        return self._transform(picture), self._transform(picture)


def viewing(corpus: Corpus) -> None:
    """Batches of two views each, made on the host."""
    tiles = TileReader(corpus, "train")
    steps = len(tiles) // BATCH

    def ours(threads: int) -> Callable[[], None]:
        stream = Stream(tiles, settings(train__loader_threads=threads))

        def run() -> None:
            for _ in stream.batches(0, steps, stream.batch):
                pass

        return run

    with TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{index:04d}.png" for index in range(PNGS)]
        for path, tile in zip(paths, tiles.read(np.arange(PNGS)), strict=True):
            Image.fromarray(tile[0]).save(path)

        def by_pngs() -> None:
            for _ in DataLoader(Pngs(paths, CROP), batch_size=16, shuffle=True, num_workers=2):
                pass

        ways = {"1 thread": ours(1), "2 threads": ours(2), "PNG": by_pngs}
        seconds = best_seconds(ways, 5)
    rate = {name: steps * BATCH / seconds[name] for name in ("1 thread", "2 threads")}
    rate["PNG"] = PNGS / seconds["PNG"]
    print(f"\nTwo views of {CROP} x {CROP}, boxes included, to batches of {BATCH}\n\n| way | tiles/s |\n| --- | ---: |")
    for name, told in (
        ("1 thread", "dic3l.stream, views on the host, 1 thread"),
        ("2 threads", "dic3l.stream, views on the host, 2 threads"),
        ("PNG", "folder of PNG, PIL, torchvision, 2 DataLoader workers, as published"),
    ):
        print(f"| {told} | {rate[name]:,.0f} |")
    print(f"\nTwo threads make {rate['2 threads'] / rate['1 thread']:.2f} times as many as one.")


def mixing(corpus: Corpus) -> None:
    """How much the place in an epoch says of the scene: 0 is nothing."""
    tiles = TileReader(corpus, "train")
    scenes = np.unique(np.array(corpus.tiles("train", columns=["scene"])["scene"].to_pylist()), return_inverse=True)[1]
    print("\nMixing: correlation ratio of the place in an epoch given the scene (mean of 20 epochs)\n\n| order | eta |")
    print("| --- | ---: |")
    in_order = np.argsort(scenes, kind="stable")
    rng = np.random.default_rng(0)

    def buffered(size: int) -> Iterator[int]:
        """What a shuffle buffer makes of tiles that lie scene after scene."""
        buffer: list[int] = []
        for index in in_order:
            buffer.append(int(index))
            if len(buffer) > size:
                yield buffer.pop(int(rng.integers(len(buffer))))
        rng.shuffle(buffer)
        yield from buffer

    quarter = len(tiles) // 4
    orders = {
        "global (train.window = 0)": [Order(tiles.ids, tiles.shard_of, s, 0).epoch(0) for s in range(20)],
        "windows of 2 shards": [Order(tiles.ids, tiles.shard_of, s, 2).epoch(0) for s in range(20)],
        "chance: random numbers": [rng.permutation(len(tiles)) for _ in range(20)],
        f"a shuffle buffer of {quarter} over tiles that lie scene after scene": [np.array(list(buffered(quarter)))],
    }
    for name, found in orders.items():
        print(f"| {name} | {np.mean([correlation_ratio(scenes[order]) for order in found]):.3f} |")


def correlation_ratio(scenes: np.ndarray) -> float:
    """eta of the places of an epoch, grouped by scene: sqrt(variance between groups / variance)."""
    places = np.arange(len(scenes), dtype=float)
    means = np.bincount(scenes, places) / np.bincount(scenes)
    return float(np.sqrt(np.average((means - places.mean()) ** 2, weights=np.bincount(scenes)) / places.var()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--remote", action="store_true", help="also from a store on loopback")
    asked = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with built_corpus() as corpus:
        os.sync()
        reading(corpus)
        viewing(corpus)
        mixing(corpus)
    if asked.remote:
        from benchmarks.remote_stream import from_store

        from_store(settings)


if __name__ == "__main__":
    main()
