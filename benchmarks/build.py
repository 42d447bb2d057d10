"""Building a corpus of simulated scenes, against the script a user would write, and against reading alone."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import rasterio
import webdataset
from rasterio.windows import Window

from benchmarks.timing import best_seconds, print_rates
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.simulate import simulate

SCENES, SIZE, TILE = 4, 4096, 256


def plain(scenes: list[Path], out: Path) -> None:
    """Percentiles of the scene, windows, codes, webdataset: no statistics of speckle, no tables, no checks."""
    out.mkdir()
    with webdataset.TarWriter(str(out / "plain.tar")) as shard:
        for path in scenes:
            with rasterio.open(path) as dataset:
                for band in range(1, dataset.count + 1):
                    db = 10 * np.log10(np.maximum(dataset.read(band), 1e-9))
                    low, high = np.percentile(db, (1, 99))
                    for row in range(0, SIZE, TILE):
                        for col in range(0, SIZE, TILE):
                            tile = np.clip((db[row : row + TILE, col : col + TILE] - low) / (high - low) * 255, 0, 255)
                            key = f"{path.stem}-{band}-{row}-{col}"
                            shard.write({"__key__": key, "npy": tile.astype(np.uint8)})


def read_only(scenes: list[Path]) -> None:
    """Every pixel once, in windows of the size of a tile's row."""
    for path in scenes:
        with rasterio.open(path) as dataset:
            for row in range(0, SIZE, TILE):
                dataset.read(window=Window(0, row, SIZE, TILE))  # type: ignore[reportCallIssue]


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        simulate(root / "sim", scenes=SCENES, size=SIZE, looks=4.0, seed=0)
        scenes = sorted((root / "sim" / "scenes").glob("*.tif"))
        with rasterio.open(scenes[0]) as dataset:
            bands = dataset.count
        config, runs = BuildConfig(tile_size=TILE), iter(range(1000))
        sources = [str(root / "sim" / "scenes")]

        def ours(workers: int) -> None:
            build(sources, root / f"corpus{next(runs)}", config, workers=workers)

        ways = {
            "sarsense build, 2 workers, with their start": lambda: ours(2),
            "sarsense build, this process": lambda: ours(0),
            "plain script (one percentile stretch a scene)": lambda: plain(scenes, root / f"plain{next(runs)}"),
            "limit: read every pixel once": lambda: read_only(scenes),
        }
        title = f"Build: {SCENES} scenes of {bands} x {SIZE} x {SIZE} float32, tiles of {TILE}"
        print_rates(title, "Mpx/s", SCENES * bands * SIZE**2 / 1e6, best_seconds(ways))


if __name__ == "__main__":
    main()
