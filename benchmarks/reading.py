"""What GDAL's settings cost: nanoseconds a pixel of reading a scene in whole rows, as a build does.

    python -m benchmarks.reading

8192 x 8192 uint16 from the page cache, one process, in pieces of 512 rows (whole rows of blocks) and of 504 (as
strips of blocks of 7 pixels would have it). Processor time beside elapsed time tells what threads cost.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from rasterio.windows import Window

from benchmarks.scenes import KINDS, write_scenes

SIDE = 8192
MIB = 2**20
SETTINGS: dict[str, dict[str, object]] = {
    "cache 16 MiB (ours: two rows of blocks)": {"GDAL_CACHEMAX": 16 * MIB},
    "cache 64 MiB": {"GDAL_CACHEMAX": 64 * MIB},
    "cache 128 MiB": {"GDAL_CACHEMAX": 128 * MIB},
    "cache of GDAL, 5 % of memory": {},
    "16 MiB, GDAL_NUM_THREADS=2": {"GDAL_CACHEMAX": 16 * MIB, "GDAL_NUM_THREADS": "2"},
    "16 MiB, GTIFF_VIRTUAL_MEM_IO": {"GDAL_CACHEMAX": 16 * MIB, "GTIFF_VIRTUAL_MEM_IO": "YES"},
}


def read(path: Path, rows: int, settings: dict[str, object], repetitions: int = 3) -> tuple[float, float]:
    """Elapsed and processor nanoseconds a pixel, of the fastest."""
    best = (np.inf, np.inf)
    for _ in range(repetitions):
        with rasterio.Env(**settings), rasterio.open(path) as dataset:
            started, used = time.perf_counter(), time.process_time()
            for row in range(0, SIDE, rows):
                dataset.read(1, window=Window(0, row, SIDE, min(rows, SIDE - row)))  # type: ignore[call-arg]
            taken = (time.perf_counter() - started, time.process_time() - used)
        best = min(best, taken)
    return best[0] / SIDE**2 * 1e9, best[1] / SIDE**2 * 1e9


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        paths = {kind: write_scenes(Path(scratch) / kind.replace(" ", "-"), 1, SIDE, kind)[0] for kind in KINDS}
        print(f"\nns/px elapsed (of the processor), pieces of 512 rows | of 504\n\n| setting | {' | '.join(KINDS)} |")
        print(f"| --- |{' ---: |' * len(KINDS)}")
        for name, settings in SETTINGS.items():
            cells = []
            for path in paths.values():
                whole, cut = (read(path, rows, settings) for rows in (512, 504))
                cells.append(f"{whole[0]:.2f} ({whole[1]:.2f}), {cut[0]:.2f} ({cut[1]:.2f})")
            print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
