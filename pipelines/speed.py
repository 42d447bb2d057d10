"""How fast this machine builds, measured here and now with the functions of a build.

A scene of speckle is drawn, measured, cut and put into a shard in a temporary folder, after a small one on which what
has to be compiled is compiled; and a file is written to the disk of the corpus and read back.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio

from pipelines.entries import Entry
from pipelines.needs import existing_parent
from pipelines.stages import channels_of
from pipelines.tasks import read_codes
from sarsense.codes import code_dtype
from sarsense.config import BuildConfig
from sarsense.corpus import array_shape, with_columns
from sarsense.cut import cut_scene, scene_id
from sarsense.measure import measure_scene
from sarsense.places import Place, work_folder
from sarsense.samples import description
from sarsense.scene import describe_scene
from sarsense.shards import write_shard
from sarsense.sources import SourceFile

_SIDE = 2048
_TRIES = 2
_DISK_BYTES = 64 * 2**20
_LOOKS = 4


@dataclass(frozen=True)
class Speed:
    """Of one process, in nanoseconds a pixel of a band; of the disk, in bytes a second."""

    measure_ns: float
    cut_ns: float
    shard_ns: float
    write: float | None
    """with fsync; None where the disk has no room for a try"""
    read: float | None


def measure_speed(config: BuildConfig, out: Place) -> Speed:
    """Takes a few seconds. Leaves nothing: `out` need not exist, and stays as it is."""
    one = replace(
        config, bands="single", polarisations=(), unit="dn", calibrate="none", spacing=None, allow_unplaced=True
    )
    with tempfile.TemporaryDirectory(prefix="sarsense-plan-") as scratch:
        _try(one, config.tile_size, Path(scratch))
        tries = [_try(one, max(_SIDE, config.tile_size), Path(scratch)) for _ in range(_TRIES)]
    measure, cut, shard = (min(times) for times in zip(*tries, strict=True))  # others load the machine now and then
    return Speed(measure, cut, shard, *_disk_speed(existing_parent(work_folder(out))))


def _try(config: BuildConfig, side: int, scratch: Path) -> tuple[float, float, float]:
    """Nanoseconds a pixel of measuring and of cutting a scene of `side` x `side`, and a code of sharding its tiles."""
    path = scratch / f"speed{side}_VV.tif"
    rng = np.random.default_rng(0)
    amplitude = 300.0 * np.sqrt(rng.standard_gamma(_LOOKS, (side, side), np.float32) / _LOOKS)
    placed = {"crs": "EPSG:32633", "transform": rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000)}
    profile = {"driver": "GTiff", "width": side, "height": side, "count": 1, "dtype": "uint16", "nodata": 0, **placed}
    with rasterio.open(path, "w", **profile, tiled=side % 16 == 0) as dataset:
        dataset.write(np.maximum(amplitude, 1).astype(np.uint16), 1)
    scene = describe_scene(str(path), path.name, config)
    seconds: list[float] = []
    with _timed(seconds):
        measured = measure_scene(scene)
    entry = Entry(SourceFile(str(path), path.name, True), scene=scene, measurement=measured, bounds=[(30.0, 65.0)])
    identity, codes = scene_id(scene, measured), scratch / "codes"
    with _timed(seconds):
        tiles = cut_scene(channels_of(entry, config), identity, config, codes).tiles
    tiles = with_columns(tiles, {"split": ["train"] * len(tiles)})
    shape, dtype = array_shape(config.tile_shape), code_dtype(config.bits)

    def samples() -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
        for row in tiles.to_pylist():
            yield row["key"], read_codes(row["codes"], row["start"], shape, dtype), description(row, config.bits)

    with _timed(seconds):
        write_shard(scratch, "speed.tar", "train", samples())
    measured, cut, sharded = seconds
    return 1e9 * measured / side**2, 1e9 * cut / side**2, 1e9 * sharded / (len(tiles) * math.prod(shape))


@contextmanager
def _timed(seconds: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)


def _disk_speed(folder: Path) -> tuple[float | None, float | None]:
    """Bytes a second written and read, by a file without a name: nobody sees it, and none stays after a kill."""
    block = np.random.default_rng(0).bytes(2**20)
    try:
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            started = time.perf_counter()
            for _ in range(_DISK_BYTES // len(block)):
                file.write(block)
            os.fsync(file.fileno())
            written = time.perf_counter()
            if hasattr(os, "posix_fadvise"):  # from the disk, not from memory
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            begun = time.perf_counter()
            while file.read(2**20):
                pass
            read = time.perf_counter()
    except OSError:
        return None, None
    return _DISK_BYTES / (written - started), _DISK_BYTES / (read - begun)
