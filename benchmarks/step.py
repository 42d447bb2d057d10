"""The training step against its networks alone, and bf16 against float32.

    python -m benchmarks.step             a few minutes on two cores
    python -m benchmarks.step --curves    also the losses of 200 steps, three seeds in each precision

Bare: forward and backward pass of torchvision's ResNet, a forward pass of a second one without gradient, fused SGD, on
tensors that are there already: what no trainer with a momentum encoder can be faster than.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import numpy as np
import torch
from torch import nn
from torchvision import models

from benchmarks.timing import best_seconds
from dic3l.base import StepBatch, training_step
from dic3l.config import Config, resolve
from dic3l.stream import Stream
from dic3l.trainer import networks
from pipelines.pretrain import keep_freed_memory
from sarsense.shards import TileSpeckle

_RATE = 1e-3
_SECONDS = 60.0
"""for which the ways of a shape take turns"""


@dataclass(frozen=True)
class Shape:
    """What is trained, with how many tiles a step."""

    arch: str
    crop: int
    batch: int
    preset: str

    def config(self, precision: str) -> Config:
        options = {
            "method.arch": self.arch,
            "method.weights": "random",
            "views.crop_size": self.crop,
            "train.batch_size": self.batch,
            "train.precision": precision,
            "boxes.min_side": 24.0,
        }
        return resolve(self.preset, options=options)

    def __str__(self) -> str:
        return f"{self.arch}, {self.crop} px, batches of {self.batch}, {self.preset}"


SHAPES = [
    Shape("resnet18", 96, 32, "smoke"),
    Shape("resnet50", 224, 16, "paper"),
    Shape("resnet50", 224, 16, "sarsense"),
]
ON_GPU = [*SHAPES, Shape("resnet50", 448, 64, "paper"), Shape("resnet50", 448, 64, "sarsense")]


class Noise:
    """Tiles of speckle, of two contents: enough for a few batches."""

    def __init__(self, count: int = 256, side: int = 512) -> None:
        rng = np.random.default_rng(0)
        self.ids = rng.integers(0, 2**63, count, dtype=np.uint64)
        self.keys = [f"tile-{index}" for index in range(count)]
        self.contents, self.shape = ("speckled", "despeckled"), (2, side, side)
        self.shard_of = np.zeros(count, np.int64)
        self._pixels = rng.gamma(4, 30, (8, *self.shape)).clip(1, 255).astype(np.uint8)

    def __len__(self) -> int:
        return len(self.ids)

    def expect(self, shards: np.ndarray) -> None: ...

    def read(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        found = self._pixels[indices % len(self._pixels)]
        if out is None:
            return found
        out[...] = found
        return out

    def speckle(self) -> TileSpeckle:
        whole = np.ones(len(self))
        return TileSpeckle(0.2 * whole, 4.0 * whole, -0.5 * whole, whole > 0)


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def finished(there: torch.device) -> None:
    if there.type == "cuda":
        torch.cuda.synchronize()


def one_batch(config: Config, there: torch.device) -> StepBatch:
    """A batch of a run, on its device."""
    from dic3l.feed import feed

    (_, batch), *_ = feed(Stream(Noise(), config), 0, 1, there)
    return batch


def our_step(config: Config, batch: StepBatch, there: torch.device) -> Callable[[], None]:
    method, query, optimiser = networks(config, None, there, 10**6)
    autocast = torch.bfloat16 if config.train.precision == "bf16" else None

    def step() -> None:
        training_step(method, query, batch, optimiser, _RATE, autocast)
        finished(there)

    return step


def bare_step(config: Config, batch: StepBatch, there: torch.device) -> Callable[[], None]:
    query, key = (cast(models.ResNet, models.get_model(config.method.arch, weights=None)) for _ in range(2))
    stem = 1 if config.method.stem == "single" else 3
    for network in (query, key):
        if stem == 1:
            network.conv1 = nn.Conv2d(1, network.conv1.out_channels, 7, 2, 3, bias=False)
        network.fc = nn.Identity()  # type: ignore[assignment]
        network.to(there, memory_format=torch.channels_last)  # type: ignore[call-overload]
    key.train(config.method.key_norm == "shuffled")
    optimiser = torch.optim.SGD(query.parameters(), _RATE, momentum=0.9, weight_decay=1e-4, fused=True)
    views = [
        (pixels.float() / 255).expand(-1, stem, -1, -1).contiguous(memory_format=torch.channels_last)
        for pixels in (batch.query_views, batch.key_views)
    ]
    half = config.train.precision == "bf16"

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(there.type, torch.bfloat16) if half else nullcontext():
            with torch.no_grad():
                key(views[1])
            features = query(views[0])
        features.float().square().mean().backward()
        optimiser.step()
        finished(there)

    return step


def steps(shapes: list[Shape], there: torch.device) -> None:
    """All ways of a shape take turns, so that what else a machine does meets them alike."""
    print(
        "\n| step | precision | ours, ms | bare, ms | ours / bare | tiles/s |\n"
        "| --- | --- | ---: | ---: | ---: | ---: |"
    )
    for shape in shapes:
        ways: dict[str, Callable[[], None]] = {}
        for precision in ("fp32", "bf16"):
            config = shape.config(precision)
            batch = one_batch(config, there)
            ways[f"ours {precision}"] = our_step(config, batch, there)
            ways[f"bare {precision}"] = bare_step(config, batch, there)
        best = best_seconds(ways, 1)  # the first is slower
        began = time.perf_counter()
        while time.perf_counter() - began < _SECONDS:
            again = best_seconds(ways, 3)
            best = {name: min(best[name], again[name]) for name in ways}
        for precision in ("fp32", "bf16"):
            ours, bare = best[f"ours {precision}"], best[f"bare {precision}"]
            print(
                f"| {shape} | {precision} | {ours * 1e3:.1f} | {bare * 1e3:.1f} | {ours / bare:.3f} | "
                f"{shape.batch / ours:.1f} |",
                flush=True,
            )
        ours, bare = (best[f"{way} fp32"] / best[f"{way} bf16"] for way in ("ours", "bare"))
        print(f"| {shape} | bf16 / fp32 | {ours:.2f} x | {bare:.2f} x | | |", flush=True)


def curves(count: int = 200, seeds: int = 3) -> None:
    """Losses of the smoke preset on simulated scenes."""
    from pipelines.build import build
    from pipelines.pretrain import pretrain
    from sarsense.config import BuildConfig
    from sarsense.simulate import simulate

    with TemporaryDirectory() as scratch:
        root = Path(scratch)
        simulate(root / "sim", scenes=4, size=1024, looks=4.0, seed=0)
        build([str(root / "sim" / "scenes")], root / "corpus", BuildConfig(tile_size=128, val_share=0), 0)
        found: dict[str, list[list[float]]] = {}
        for precision in ("fp32", "bf16"):
            found[precision] = []
            for seed in range(seeds):
                config = SHAPES[0].config(precision)
                train = replace(config.train, steps=count, seed=seed, log_every=count // 10, checkpoint_every=10**6)
                run = root / f"{precision}-{seed}"
                pretrain(root / "corpus", run, replace(config, train=train))
                found[precision].append(_losses(run))
    print(f"\nLoss of {count} steps of {SHAPES[0]}: mean of {seeds} seeds, in brackets their spread\n")
    print("| steps | fp32 | bf16 |\n| ---: | ---: | ---: |")
    for row in range(len(found["fp32"][0])):
        cells = [np.array([losses[row] for losses in found[precision]]) for precision in ("fp32", "bf16")]
        told = " | ".join(f"{cell.mean():.4f} ({np.ptp(cell):.4f})" for cell in cells)
        print(f"| {(row + 1) * count // 10} | {told} |")


def _losses(run: Path) -> list[float]:
    import json

    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    keep_freed_memory()  # as a run does, for both ways
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", action="store_true", help="also loss curves of both precisions")
    asked = parser.parse_args()
    there = device()
    name = torch.cuda.get_device_name() if there.type == "cuda" else f"{torch.get_num_threads()} cores"
    print(f"torch {torch.__version__} on {name}: python -m benchmarks.step")
    steps(ON_GPU if there.type == "cuda" else SHAPES, there)
    if asked.curves:
        curves()


if __name__ == "__main__":
    main()
