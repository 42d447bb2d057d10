"""What a build over object storage asks for and how long it takes, against the local build.

    taskset -c 1 python -m benchmarks.remote

The server is tests/object_store.py (moto behind a proxy) on this machine: its own time is in the seconds, a network's
is not. Requests and bytes are what a store would count.
"""

from __future__ import annotations

import os
import platform
import tempfile
import time
from collections import Counter
from pathlib import Path

import rasterio

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.corpus import open_corpus
from sarsense.places import place
from sarsense.simulate import simulate
from sarsense.verify import verify_corpus
from tests.object_store import object_store

SCENES, SIZE = 4, 2048
CONFIG = BuildConfig(tile_size=256, shard_mib=8, val_share=0.3, cell_km=10.0)


def main() -> None:
    print(f"{platform.processor() or platform.machine()}, GDAL {rasterio.__gdal_version__}, ", end="")
    print(f"{SCENES} scenes of {SIZE} x {SIZE} x 2, tiles of {CONFIG.tile_size}; python -m benchmarks.remote")
    with object_store() as store, tempfile.TemporaryDirectory() as folder:
        os.environ.update(store.environment)
        os.chdir(folder)
        simulate(Path("in"), scenes=SCENES, size=SIZE, looks=4.0, seed=1)
        store.put_folder(Path("in/scenes"), "shelf/scenes")
        size = sum(path.stat().st_size for path in Path("in/scenes").iterdir())
        build(["in/scenes"], Path("warm"), CONFIG, workers=0)
        print(f"{'from':6} {'to':6} {'faults':>6} {'s':>6} {'requests':>22} {'got/sources':>11} {'shards':>11} digest")
        for share, source, out in (
            (0.0, "in/scenes", "local"),
            (0.0, "s3://shelf/scenes", "one"),
            (0.1, "s3://shelf/scenes", "two"),
            (0.0, "in/scenes", "s3://shelf/three"),
            (0.1, "s3://shelf/scenes", "s3://shelf/four"),
        ):
            store.behave(share=share, seed=7)
            started = time.perf_counter()
            summary = build([source], place(out), CONFIG, workers=0)
            seconds, log = time.perf_counter() - started, store.log()
            got = sum(sent for method, path, _, sent, _ in log if method == "GET" and ".tif" in path)
            asked = " ".join(f"{method} {count}" for method, count in sorted(Counter(row[0] for row in log).items()))
            sent = sum(1 for row in log if row[0] == "PUT" and ".tar" in row[1] and row[2] == 200)
            faults, there = sum(store.faults().values()), f"{sent}/{summary.shards}"
            print(
                f"{source[:2]:6} {out[:2]:6} {faults:6} {seconds:6.1f} {asked:>22} {got / size:11.2f} {there:>11} "
                f"{summary.digest[:12]}"
            )
        store.behave()
        assert verify_corpus(open_corpus("s3://shelf/four")) == []
        log = store.log()
        read, there = sum(row[3] for row in log if ".tar" in row[1]), sum(s.bytes for s in open_corpus("local").shards)
        print(f"verify: {len(log)} requests, {read / there:.2f} x the bytes of the shards")


if __name__ == "__main__":
    main()
