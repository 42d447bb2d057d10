"""Building a corpus: how fast, in how much memory, against the plain way and the limit of the machine.

    python -m benchmarks.build            twenty minutes
    python -m benchmarks.build --full     also 46,000 tiles, and what the whole of SARSense would take

Scenes of uint16, tiles of 512, 4 looks, statistics of speckle, SHA-256 and perceptual hashes. Each build runs in a
process of its own with its workers, after one that compiles what is compiled.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image
from rasterio.windows import Window
from scipy.ndimage import uniform_filter

from benchmarks.scenes import KINDS, write_scenes
from benchmarks.timing import best_seconds
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus

SIDE, TILE = 8192, 512
SARSENSE = 460_532
STAGES = ("scan", "measure", "cut", "compare", "shard", "seal")


@dataclass(frozen=True)
class Run:
    """What a build took."""

    tiles: int
    pixels: int
    seconds: float
    """from the first stage to the last, workers running"""
    start_seconds: float
    """until the first stage: Dask, imports"""
    by_stage: dict[str, float]
    worker_mib: float
    """peak memory of the largest worker; of this process where it has none"""
    main_mib: float
    bytes_read: int
    """by this process; 0 where workers read"""
    bytes_written: int

    @property
    def rate(self) -> float:
        """Mpx/s."""
        return self.pixels / self.seconds / 1e6


class _Clock:
    """Times the stages of a build."""

    def __init__(self) -> None:
        self.by_stage: dict[str, float] = {}
        self.first = 0.0
        self._stage = ""
        self._since = time.perf_counter()

    def say(self, line: str) -> None: ...

    def stage(self, name: str, total: int, cost: float = 0.0, there: int = 0) -> None:
        now = time.perf_counter()
        self.first = self.first or now
        if self._stage:
            self.by_stage[self._stage] = self.by_stage.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = name, now

    def advance(self, cost: float = 0.0) -> None: ...


def one_build(sources: str, out: Path, workers: int) -> Run:
    """Runs in a process of its own."""
    before, started, clock = _traffic(), time.perf_counter(), _Clock()
    build([sources], out, BuildConfig(tile_size=TILE, val_share=0.1), workers, progress=clock)
    clock.stage("", 0)
    after, ended = _traffic(), time.perf_counter()
    tiles = len(open_corpus(out).tiles(columns=["key"]))
    pixels = sum(_pixels(path) for path in sorted(Path(sources).glob("*.tif")))
    own, children = _peak_mib(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return Run(
        tiles=tiles,
        pixels=pixels,
        seconds=ended - clock.first,
        start_seconds=clock.first - started,
        by_stage=clock.by_stage,
        worker_mib=children if workers else own,
        main_mib=own,
        bytes_read=after[0] - before[0],
        bytes_written=after[1] - before[1],
    )


def build_apart(sources: Path, out: Path, workers: int, repetitions: int = 2) -> Run:
    """The fastest of some builds, each in a process of its own."""
    best: Run | None = None
    for _ in range(repetitions):
        shutil.rmtree(out, ignore_errors=True)
        command = [sys.executable, "-m", "benchmarks.build", "--one", str(sources), str(out), str(workers)]
        told = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        run = Run(**json.loads(told.splitlines()[-1]))
        best = run if best is None or run.seconds < best.seconds else best
    assert best is not None
    return best


def two_apart(scenes: list[Path], root: Path, repetitions: int = 2) -> float:
    """Mpx/s of two builds at once, a process and half of the scenes each."""
    halves = []
    for name, paths in (("first", scenes[::2]), ("second", scenes[1::2])):
        folder = root / "halves" / name
        folder.mkdir(parents=True)
        for path in paths:
            (folder / path.name).hardlink_to(path)
        halves.append(folder)
    best = 0.0
    for _ in range(repetitions):
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(lambda half: build_apart(half, half.with_suffix(".out"), 0, 1), halves))
        best = max(best, sum(run.rate for run in runs))
    return best


def _traffic() -> tuple[int, int]:
    """Bytes that this process has read and written by system calls."""
    words = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(words["rchar"]), int(words["wchar"])


def _peak_mib() -> float:
    """Of this process since it began; getrusage would count what its parent had."""
    words = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(words["VmHWM"].split()[0]) / 1024


def _pixels(path: Path) -> int:
    with rasterio.open(path) as dataset:
        return dataset.width * dataset.height * dataset.count


# ------------------------------------------------------------------------------------------- other ways


def plain(scenes: list[Path], out: Path, level: int) -> None:
    """What a script does: window after window read, Lee 7 x 7 by scipy, dB, 8 bits, PNG (of this compression), tar."""
    with tarfile.open(out, "w") as tar:
        for path in scenes:
            with rasterio.open(path) as dataset:
                for row in range(0, dataset.height, TILE):
                    for col in range(0, dataset.width, TILE):
                        window = Window(col, row, TILE, TILE)  # type: ignore[call-arg]
                        power = dataset.read(1, window=window).astype(np.float32) ** 2
                        mean = uniform_filter(power, 7)
                        variance = np.maximum(uniform_filter(power * power, 7) - mean * mean, 1e-12)
                        weight = np.clip(1 - mean * mean / 4 / variance, 0, 1)
                        db = 10 * np.log10(np.maximum(mean + weight * (power - mean), 1e-9))
                        codes = np.clip((db - 10) * (255 / 50), 0, 255).astype(np.uint8)
                        buffer = io.BytesIO()
                        Image.fromarray(codes).save(buffer, "PNG", compress_level=level)
                        info = tarfile.TarInfo(f"{path.stem}-{row}-{col}.png")
                        info.size = buffer.tell()
                        buffer.seek(0)
                        tar.addfile(info, buffer)


def read_and_write(scenes: list[Path], out: Path) -> None:
    """The bytes of the scenes read, those of the tiles written and flushed: what the machine must do in any case."""
    buffer = bytearray(16 * 2**20)
    with out.open("wb") as target:
        for path in scenes:
            with path.open("rb", buffering=0) as file:
                while count := file.readinto(buffer):
                    target.write(memoryview(buffer)[: count // 2])  # two bytes a pixel in, one out
        target.flush()
        os.fsync(target.fileno())


def kernels(path: Path, scratch: Path) -> dict[str, float]:
    """Nanoseconds a pixel of what the stages do to pixels, each alone, on one scene."""
    import hashlib

    from sarsense.dedup.fingerprint import fingerprint
    from sarsense.power import as_index, look_up, power_table
    from sarsense.raster import bands_of_rows, open_raster
    from sarsense.scene import describe_scene
    from sarsense.speckle import STRIP, BlockStatistics, LevelHistogram
    from sarsense.strip import Channel, StripReader

    scene = describe_scene(str(path), path.name, BuildConfig(tile_size=TILE))
    band, width = scene.bands[0], scene.width
    with rasterio.open(path) as dataset:
        values = as_index(dataset.read(1))
    table = power_table(band, np.dtype("uint16"))
    assert table is not None
    with np.errstate(divide="ignore"):
        logs = np.log(table)
    channel = Channel(scene, band, 4.0, 10.0, 60.0, 0.0)
    codes = np.empty(values.shape, np.uint8)
    code_table = np.clip(np.arange(1 << 16) // 8, 0, 255).astype(np.uint8)
    log = np.empty((STRIP, width), np.float32)

    def reading(piece: int) -> None:
        with open_raster(str(path)) as (dataset, _):
            for _ in bands_of_rows(dataset, 1, piece, 4 * 2**20, 0, dataset.height):
                pass

    def statistics() -> None:
        levels, blocks = LevelHistogram(STRIP, width), BlockStatistics()
        for number, top in enumerate(range(0, len(values), STRIP)):
            rows = values[top : top + STRIP]
            power = levels.room(len(rows))
            look_up(rows, table, power)
            levels.add(len(rows), masked=False)
            if number % 4 == 0:
                look_up(rows, logs, log[: len(rows)])
                blocks.add(power, log[: len(rows)])

    def windows() -> None:
        with open_raster(str(path)) as (dataset, _):
            reader = StripReader([(dataset, channel)], 8)
            (strip,) = reader.read(0, TILE)
            for _ in range(0, len(values), TILE):
                for col in range(0, width, TILE):
                    strip.look_at(col, TILE)

    tiles = [
        codes[row : row + TILE, col : col + TILE]
        for row in range(0, len(values), TILE)
        for col in range(0, width, TILE)
    ]
    look_up(values, code_table, codes)
    tiles = [np.ascontiguousarray(tile) for tile in tiles]

    def write() -> None:
        with scratch.open("wb") as file:
            for tile in tiles:
                file.write(tile.data)

    ways: dict[str, Callable[[], object]] = {
        "read, twice": lambda: (reading(STRIP), reading(TILE)),
        "SHA-256 of the values": lambda: hashlib.sha256(values.data).digest(),
        "levels and looks": statistics,
        "codes looked up": lambda: look_up(values, code_table, codes),
        "statistics of tiles": windows,
        "perceptual hashes": lambda: [fingerprint(tile, 0.2) for tile in tiles],
        "SHA-256 of tiles, of shards": lambda: [hashlib.sha256(tile.data).digest() for tile in tiles * 2],
        "codes and shards written": lambda: (write(), write()),
    }
    found = {name: seconds / values.size * 1e9 for name, seconds in best_seconds(ways).items()}
    return found


# ------------------------------------------------------------------------------------------------ tables


def table(title: str, columns: list[str], rows: list[list[object]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(columns)} |\n| --- |{' ---: |' * (len(columns) - 1)}")
    for row in rows:
        print(f"| {' | '.join(f'{cell:,.3g}' if isinstance(cell, float) else str(cell) for cell in row)} |", flush=True)


def compare_ways(root: Path, scenes: int) -> None:
    folder = root / "tiled"
    paths = write_scenes(folder, scenes, SIDE)
    os.sync()  # else the disk is still busy with them
    pixels = len(paths) * SIDE**2
    alone = build_apart(folder, root / "out", 0, 3)
    runs = {f"sarsense build, {n} worker{'s' * (n > 1)}": build_apart(folder, root / "out", n, 3) for n in (1, 2)}
    few = paths[:2]
    ways = {str(level): lambda level=level: plain(few[:1], root / "plain.tar", level) for level in (1, 6)}
    rates = {level: SIDE**2 / seconds / 1e6 for level, seconds in best_seconds(ways, 2).items()}
    plain_rate = rates["1"]
    limit = 2 * SIDE**2 / best_seconds({"": lambda: read_and_write(few, root / "bytes")})[""] / 1e6
    rows: list[list[object]] = []
    for name, run in {"sarsense build, this process": alone, **runs}.items():
        rows.append(
            [name, run.rate, run.tiles / run.seconds, run.rate / plain_rate, run.rate / limit, run.start_seconds]
        )
    for level, told in (("1", "PNG at its fastest"), ("6", "PNG as Pillow writes it")):
        rate = rates[level]
        name = f"plain: rasterio, scipy Lee, numpy, {told}, tarfile"
        rows.append([name, rate, rate * 1e6 / TILE**2, rate / plain_rate, rate / limit, 0.0])
    rows.append(["limit: read the bytes, write the bytes", limit, limit * 1e6 / TILE**2, limit / plain_rate, 1.0, 0.0])
    table(
        f"Build of {scenes} scenes of {SIDE} x {SIDE} uint16, {pixels / 1e6:,.0f} Mpx",
        ["way", "Mpx/s", "tiles/s", "of plain", "of the limit", "start, s"],
        rows,
    )
    one, two = runs.values()
    apart = two_apart(paths, root)
    print(
        f"\nTwo workers are {two.rate / one.rate:.2f} times one; two builds apart, of half of the "
        f"scenes each, run at {apart / alone.rate:.2f} times one: what this machine has for a second process."
    )
    by_kernel = kernels(paths[0], root / "scratch")
    total = sum(by_kernel.values())
    stages: list[list[object]] = []
    for name, seconds in {**{name: alone.by_stage.get(name, 0.0) for name in STAGES}, "all": alone.seconds}.items():
        stages.append([name, seconds, seconds / pixels * 1e9, pixels / 1e6 / max(seconds, 1e-9)])
    table("One process, by stage", ["stage", "s", "ns/px", "Mpx/s"], stages)
    table("Kernels, each alone", ["kernel", "ns/px"], [*([*pair] for pair in by_kernel.items()), ["sum", total]])
    print(f"\nThe build runs at {total / (alone.seconds / pixels * 1e9):.2f} of the sum of its kernels.")


def compare_kinds(root: Path) -> None:
    rows: list[list[object]] = []
    for kind in KINDS:
        folder = root / kind.replace(" ", "-")
        write_scenes(folder, 2, SIDE, kind)
        os.sync()
        run = build_apart(folder, root / "out", 0)
        a_tile = max(run.tiles, 1) * 1024
        rows.append([kind, run.rate, run.tiles / run.seconds, run.bytes_read / a_tile, run.bytes_written / a_tile])
        shutil.rmtree(folder)
    folder = root / "float"
    write_scenes(folder, 2, SIDE, dtype="float32")
    for path in sorted(folder.glob("*.tif")):
        path.rename(path.with_name(path.name.replace("_VV", "_amplitude_VV")))
    run = build_apart(folder, root / "out", 0)
    a_tile = max(run.tiles, 1) * 1024
    rows.append(
        ["tiled, float32", run.rate, run.tiles / run.seconds, run.bytes_read / a_tile, run.bytes_written / a_tile]
    )
    shutil.rmtree(folder)
    table(
        f"Kinds of input, 2 scenes of {SIDE} x {SIDE}, one process",
        ["input", "Mpx/s", "tiles/s", "KiB read a tile", "KiB written a tile"],
        rows,
    )


def compare_numbers(root: Path) -> None:
    """Peak memory, 10 scenes and 200."""
    rows: list[list[object]] = []
    for number in (10, 200):
        folder = root / f"n{number}"
        write_scenes(folder, number, 2048)
        os.sync()
        run = build_apart(folder, root / "out", 2, 1)
        rows.append([f"{number} scenes of 2048 x 2048", run.tiles, run.worker_mib, run.main_mib, run.rate])
        shutil.rmtree(folder)
    table("Peak memory, 2 workers", ["build", "tiles", "a worker, MiB", "main process, MiB", "Mpx/s"], rows)


def whole(root: Path) -> None:
    """46,000 tiles, and what SARSense would take."""
    folder = root / "full"
    scenes = 46_000 // (SIDE // TILE) ** 2 + 1
    write_scenes(folder, scenes, SIDE)
    os.sync()
    run = build_apart(folder, root / "out", 2, 1)
    times = SARSENSE / run.tiles
    rows: list[list[object]] = [
        [f"{run.tiles:,} tiles, measured", run.seconds / 60, run.rate, run.worker_mib, run.main_mib],
        [f"{SARSENSE:,} tiles, extrapolated", run.seconds / 60 * times, run.rate, run.worker_mib, "not told"],
    ]
    table("The whole corpus, 2 workers", ["build", "minutes", "Mpx/s", "a worker, MiB", "main process, MiB"], rows)
    print("\nExtrapolated: time in proportion to the tiles. By stage: " + json.dumps(run.by_stage))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--scenes", type=int, default=48, help="of 8192 x 8192, for the first table")
    parser.add_argument("--only", choices=["ways", "kinds", "memory", "full"])
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.one:
        print(json.dumps(asdict(one_build(asked.one[0], Path(asked.one[1]), int(asked.one[2])))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        write_scenes(root / "first", 1, 1024)
        build_apart(root / "first", root / "out", 0, 1)
        parts = {
            "ways": lambda: compare_ways(root, asked.scenes),
            "kinds": lambda: compare_kinds(root),
            "memory": lambda: compare_numbers(root),
        }
        if asked.full or asked.only == "full":
            parts["full"] = lambda: whole(root)
        for name, part in parts.items():
            if asked.only in (None, name):
                part()
                shutil.rmtree(root / "out", ignore_errors=True)


if __name__ == "__main__":
    main()
