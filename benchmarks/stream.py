"""Reading tiles in random order, and making views of them, against webdataset and against torchvision."""

from __future__ import annotations

import tempfile
from pathlib import Path

import cv2
import numpy as np
import torch
import webdataset
from PIL import Image
from torchvision.transforms import v2

from benchmarks.timing import best_seconds, print_rates
from dic3l.config import ViewConfig
from dic3l.draws import tile_uniforms
from dic3l.views import DRAWS_PER_VIEW, draw_view, render_one
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import Corpus, open_corpus
from sarsense.shards import TileReader
from sarsense.simulate import simulate

TILE, CROP, VIEWED = 512, 448, 128


def reading(corpus: Corpus, passes: int = 8) -> None:
    reader = TileReader(corpus)
    order = np.concatenate([np.random.default_rng(index).permutation(len(reader)) for index in range(passes)])
    batch = np.empty((64, 1, TILE, TILE), np.uint8)
    shards = [str(corpus.root / shard.path) for shard in corpus.shards]
    raw = np.concatenate([np.fromfile(path, np.uint8) for path in shards])

    def ours() -> None:
        for start in range(0, len(order), len(batch)):
            chosen = order[start : start + len(batch)]
            reader.read(chosen, out=batch[: len(chosen)])

    def by_webdataset() -> None:
        for _ in range(passes):
            for sample in webdataset.WebDataset(shards, shardshuffle=False).decode():
                sample["npy"]

    def limit() -> None:
        for start in range(0, len(order), len(batch)):
            size = len(order[start : start + len(batch)]) * TILE**2
            batch.reshape(-1)[:size] = raw[:size]

    ways = {
        "TileReader, random order": ours,
        "webdataset, decoded, in order": by_webdataset,
        "limit: copy the bytes in memory": limit,
    }
    print_rates(f"Reading tiles of {TILE} x {TILE}, warm, one thread", "tiles/s", len(order), best_seconds(ways))


def viewing(corpus: Corpus) -> None:
    reader = TileReader(corpus)
    tiles = reader.read(np.arange(VIEWED) % len(reader))
    config = ViewConfig(crop_size=CROP)
    uniforms = tile_uniforms(0, np.zeros(VIEWED, np.int64), np.arange(VIEWED, dtype=np.uint64), DRAWS_PER_VIEW)
    out = np.empty((1, CROP, CROP), np.uint8)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(CROP, (0.2, 1.0)),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
            v2.RandomHorizontalFlip(),
        ]
    )

    def ours() -> None:
        params = draw_view(uniforms, (TILE, TILE), config)
        for index in range(VIEWED):
            render_one(tiles[index], params, index, CROP, out=out)

    def by_torchvision() -> None:
        for tile in tiles:
            transform(Image.merge("RGB", [Image.fromarray(tile[0])] * 3))

    def limit() -> None:
        for tile in tiles:
            out[...] = tile[:, :CROP, :CROP]

    ways = {
        "dic3l.views": ours,
        "PIL and torchvision on three copies, as published": by_torchvision,
        "limit: copy the crop in memory": limit,
    }
    print_rates(
        f"Views of {CROP} x {CROP} of tiles of {TILE} x {TILE}, one thread", "views/s", VIEWED, best_seconds(ways)
    )


def main() -> None:
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        simulate(root / "sim", scenes=4, size=4 * TILE, looks=4.0, seed=0)
        build([str(root / "sim" / "scenes")], root / "corpus", BuildConfig(tile_size=TILE), workers=0)
        corpus = open_corpus(root / "corpus")
        reading(corpus)
        viewing(corpus)


if __name__ == "__main__":
    main()
