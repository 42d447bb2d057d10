"""What it costs to grow a corpus by one scene, against building that scene alone.

    python -m benchmarks.growth

Simulated scenes of 2 x 2048 x 2048 float32, tiles of 256, one process. The constant is what a build costs that has
nothing to do (start, tables, seal), measured as a growth by a scene that is smaller than a tile.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio

from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.simulate import simulate

SIZE = 2048


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        simulate(root, scenes=18, size=SIZE, looks=4.0, seed=1)
        files = sorted((root / "scenes").glob("*"))
        tiny = root / "tiny_VV.tif"
        with rasterio.open(files[0]) as source:
            profile = {**source.profile, "width": 64, "height": 64, "count": 1, "tiled": False}
            profile.pop("blockxsize", None)
            profile.pop("blockysize", None)
            with rasterio.open(tiny, "w", **profile) as target:
                target.write(np.full((64, 64), 0.1, np.float32), 1)
        config = BuildConfig(tile_size=256, val_share=0.1, cell_km=20.0)
        build([str(files[0])], root / "warm", config, 0)  # compiles what is compiled
        rows, alone = [], seconds([files[17]], root / "alone", config)
        rows.append(["one scene alone", f"{alone:.2f}", "", ""])
        for count in (4, 16):
            corpus = root / f"of-{count}"
            whole = seconds(files[:count], corpus, config)
            rows.append([f"{count} scenes", f"{whole:.2f}", "", ""])
            copy = shutil.copytree(corpus, root / f"copy-{count}")
            constant = seconds([tiny], copy, config)
            grown = seconds([*files[:count], files[17]], corpus, config)
            rows.append(
                [f"{count} scenes and one more", f"{grown:.2f}", f"{constant:.2f}", f"{(grown - constant) / alone:.2f}"]
            )
    machine = platform.processor() or platform.machine()
    print(f"\n{machine}, one process, scenes of 2 x {SIZE} x {SIZE}: python -m benchmarks.growth\n")
    print("| build | s | of which constant, s | the rest, of the scene's own time |\n| --- | ---: | ---: | ---: |")
    for row in rows:
        print("| " + " | ".join(row) + " |")


def seconds(files: list[Path], out: Path, config: BuildConfig) -> float:
    started = time.perf_counter()
    build([str(path) for path in files], out, config, 0)
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
