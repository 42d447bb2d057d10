"""Ingest of one big scene as providers deliver it, uint16 in one-row strips: time and peak memory of each stage,
against plain block-aligned reading of the same file. Each way runs in a process of its own, with its own peak."""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from benchmarks.timing import best_seconds
from sarsense.config import BuildConfig
from sarsense.cut import cut_scene
from sarsense.files import read_json, write_json
from sarsense.measure import Measurement, measure_scene
from sarsense.normalize import enl_bias_db, scene_range
from sarsense.raster import open_raster, read_rows, strips
from sarsense.scene import Scene, describe_scene
from sarsense.strip import Channel

HEIGHT, WIDTH, TILE = 16_000, 25_000, 512


def write_scene(path: Path) -> None:
    """Speckled amplitude, written strip by strip."""
    rng = np.random.default_rng(0)
    profile = {"driver": "GTiff", "height": HEIGHT, "width": WIDTH, "count": 1, "dtype": "uint16", "blockysize": 1}
    place = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 300_000, 0, -10, 5_000_000)}
    block = (100 * np.sqrt(rng.gamma(4.0, 0.25, (1000, WIDTH)))).astype(np.uint16)
    with rasterio.open(path, "w", **profile, **place) as dataset:
        for row in range(0, HEIGHT, 1000):
            dataset.write(np.roll(block, 37 * row, axis=1), 1, window=Window(0, row, WIDTH, 1000))  # type: ignore[call-arg]


def plain_reading(path: Path) -> None:
    with rasterio.open(path) as dataset:
        for row in range(0, HEIGHT, 1000):
            dataset.read(1, window=Window(0, row, WIDTH, 1000))  # type: ignore[call-arg]


def our_reading(path: Path) -> None:
    with open_raster(str(path)) as (dataset, _):
        for first, last in strips(HEIGHT, TILE):
            read_rows(dataset, 1, first, last)


def scan(path: Path) -> Scene:
    return describe_scene(str(path), path.name, BuildConfig(tile_size=TILE))


def measure(path: Path) -> None:
    write_json(path.parent / "measured.json", measure_scene(scan(path)).to_json())


def cut(path: Path) -> None:
    scene = scan(path)
    measured = Measurement.from_json(read_json(path.parent / "measured.json"))
    band, found = scene.bands[0], measured.bands[0]
    bounds = scene_range(found.pooled(band))
    channel = Channel(scene, band, found.enl, bounds.lo_db, bounds.hi_db, enl_bias_db(found.enl, band.quantity))
    cut_scene([[channel]], scene.name, BuildConfig(tile_size=TILE), path.parent / "codes")


def in_a_process(task: Callable[[Path], object], path: Path) -> tuple[float, float]:
    """Seconds of the faster of two runs, and peak memory in MiB."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_timed, args=(task, path, queue))
    process.start()
    seconds, peak = queue.get()
    process.join()
    return seconds, peak


def _timed(task: Callable[[Path], object], path: Path, queue: multiprocessing.Queue[tuple[float, float]]) -> None:
    seconds = best_seconds({"": lambda: task(path)}, repetitions=2)[""]
    queue.put((seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main() -> None:
    pixels = HEIGHT * WIDTH / 1e6
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "scene_VV.tif"
        write_scene(path)
        print(f"\nIngest of {HEIGHT} x {WIDTH} uint16 in one-row strips, one process\n")
        print("| step | s | Mpx/s | peak memory of the process, MiB |\n| --- | ---: | ---: | ---: |")
        steps = {"plain rasterio reading": plain_reading, "our reading": our_reading, "scan": scan, "measure": measure}
        for name, task in {**steps, "cut": cut}.items():
            seconds, peak = in_a_process(task, path)
            print(f"| {name} | {seconds:.2f} | {pixels / seconds:,.0f} | {peak:,.0f} |")


if __name__ == "__main__":
    main()
