"""Whole training runs: tiles/s, what of it is lost to waiting for data, and how near to the limit of the machine.

    python -m benchmarks.train

Side by side in one run: the trainer on shards; the same step on one batch that is there already (what data could cost
at most nothing); the same step behind the plain way, PIL and DataLoader workers on a folder of PNG.
Utilisation is of model FLOP (four forward passes a tile: query there and back, key there) over what a large matrix
product reaches on this machine in the same precision.
"""

from __future__ import annotations

import os
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

from benchmarks.corpora import built_corpus
from benchmarks.step import ON_GPU, SHAPES, Shape, device, finished, one_batch, our_step
from benchmarks.stream import Pngs
from benchmarks.timing import best_seconds
from dic3l.base import training_step
from dic3l.config import Config
from dic3l.feed import feed
from dic3l.stream import Stream
from dic3l.trainer import choose_precision, networks
from pipelines.pretrain import keep_freed_memory
from sarsense.corpus import Corpus
from sarsense.shards import TileReader

SARSENSE = 460_532


def trained(corpus: Corpus, config: Config, there: torch.device, steps: int) -> tuple[float, float]:
    """Tiles/s and the share of time in which the step waits for data, when what was made ahead is used up.

    On a GPU the wait is the host's, which runs ahead of the device: above what the device waits. `--profile` of a run
    tells what the device does.
    """
    stream = Stream(TileReader(corpus, "train", eight_bit=True), config)
    method, query, optimiser = networks(config, None, there, SARSENSE)
    autocast = torch.bfloat16 if config.train.precision == "bf16" else None
    ahead = config.train.loader_threads + 2
    warm, waited, began = ahead + 3, 0.0, 0.0
    with closing(feed(stream, 0, warm + steps + ahead, there)) as batches:  # threads are at work to the end
        for number in range(warm + steps):
            if number == warm:
                finished(there)
                waited, began = 0.0, time.perf_counter()
            asked = time.perf_counter()
            _, batch = next(batches)
            waited += time.perf_counter() - asked
            training_step(method, query, batch, optimiser, 1e-3, autocast)
        finished(there)
        seconds = time.perf_counter() - began
    return steps * config.train.batch_size / seconds, waited / seconds


def alone(config: Config, there: torch.device, steps: int) -> float:
    """Tiles/s of as many steps, one after the other, on a batch that is there."""
    batch = one_batch(config, there)
    method, query, optimiser = networks(config, None, there, SARSENSE)
    autocast = torch.bfloat16 if config.train.precision == "bf16" else None
    began = 0.0
    for number in range(3 + steps):
        if number == 3:
            finished(there)
            began = time.perf_counter()
        training_step(method, query, batch, optimiser, 1e-3, autocast)
    finished(there)
    return steps * config.train.batch_size / (time.perf_counter() - began)


def plainly(corpus: Corpus, shape: Shape, config: Config, there: torch.device, steps: int) -> float:
    """Tiles/s of the same step behind as many DataLoader workers that read PNG, when what they made ahead is gone."""
    workers = config.train.loader_threads
    begun = 2 * workers + 2  # each has two batches made ahead
    tiles = TileReader(corpus, "train", eight_bit=True)
    with TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"{index:04d}.png" for index in range(shape.batch * (steps + begun))]
        for first in range(0, len(paths), 64):
            some = paths[first : first + 64]
            for path, tile in zip(some, tiles.read((first + np.arange(len(some))) % len(tiles)), strict=True):
                Image.fromarray(tile[0]).save(path, compress_level=1)
        step = our_step(config, one_batch(config, there), there)
        step()
        loader = DataLoader(Pngs(paths, shape.crop), batch_size=shape.batch, shuffle=True, num_workers=workers)
        began = 0.0
        for number, views in enumerate(loader):
            if number == begun:
                began = time.perf_counter()
            for view in views:
                view.to(there)
            step()
        return shape.batch * steps / (time.perf_counter() - began)


def flop_a_tile(shape: Shape) -> float:
    network = models.get_model(shape.arch, weights=None)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, 3, shape.crop, shape.crop))
    return 4.0 * counter.get_total_flops()


def peak_flops(there: torch.device, dtype: torch.dtype) -> float:
    """Of a large matrix product."""
    side = 8192 if there.type == "cuda" else 2048
    a, b = (torch.randn(side, side, device=there, dtype=dtype) for _ in range(2))

    def product() -> None:
        a @ b
        finished(there)

    product()
    return 2.0 * side**3 / best_seconds({"": product}, 5)[""]


def main() -> None:
    cv2.setNumThreads(1)
    there = device()
    if there.type == "cpu":
        keep_freed_memory()
    precision = choose_precision("auto", there)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    name = torch.cuda.get_device_name() if there.type == "cuda" else f"{os.cpu_count()} cores"
    print(f"torch {torch.__version__} on {name}, {precision}: python -m benchmarks.train")
    peak = peak_flops(there, dtype)
    print(
        "\n| run | tiles/s | waits for data | of the step alone | of peak FLOP/s | plain way, tiles/s | times plain |"
    )
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    with built_corpus(scenes=2, content="both") as corpus:
        os.sync()
        for shape in ON_GPU if there.type == "cuda" else [SHAPES[0], SHAPES[1]]:
            config = shape.config(precision)
            config = replace(config, train=replace(config.train, loader_threads=os.cpu_count() or 2))
            steps = 200 if there.type == "cuda" else max(6, 640 // shape.batch)
            rate, waits = trained(corpus, config, there, steps)
            limit = alone(config, there, steps)
            plain = plainly(corpus, shape, config, there, max(6, steps // 4))
            used = rate * flop_a_tile(shape) / peak
            print(
                f"| {shape} | {rate:,.1f} | {waits:.1%} | {rate / limit:.2f} | {used:.0%} | {plain:,.1f} | "
                f"{rate / plain:.1f} |",
                flush=True,
            )
    print(
        f"\nPeak: {peak / 1e12:.2f} TFLOP/s. An epoch of {SARSENSE:,} tiles at the last rate: "
        f"{SARSENSE / rate / 60:,.0f} minutes here, {SARSENSE / rate / 60 / 8:,.1f} on eight of these, if gradients "
        "travel beside the backward pass and shards are read by as many cores for each: an estimate, not a measurement."
    )


if __name__ == "__main__":
    main()
