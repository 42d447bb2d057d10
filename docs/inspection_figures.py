"""The figures of docs/inspection.md: python -m docs.inspection_figures [FOLDER]. Needs Chromium.

Of the corpus of `benchmarks.big_table` (460,532 tiles), and of one of simulated scenes, whose pictures fit together.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image

from benchmarks.big_table import make
from pipelines.build import build
from sarsense.config import BuildConfig
from sarsense.inspection.map import write_map
from sarsense.inspection.source import open_source
from sarsense.inspection.statistics import statistics
from sarsense.report.document import write_report
from sarsense.report.overview import overview_figure
from sarsense.simulate import simulate

HERE = Path(__file__).parent / "figures"


def shoot(page: Path, anchor: str, out: Path, size: tuple[int, int]) -> None:
    """A screenshot of a page, opened at an anchor."""
    chromium = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if chromium is None:
        raise SystemExit("docs.inspection_figures: Chromium is not here: apt-get install chromium")
    with TemporaryDirectory() as profile:
        command = [
            chromium,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={profile}",
        ]
        command += ["--virtual-time-budget=30000", f"--window-size={size[0]},{size[1]}", f"--screenshot={out}"]
        subprocess.run([*command, f"file://{page}{anchor}"], check=True, stderr=subprocess.DEVNULL, timeout=180)
    with Image.open(out) as picture:
        picture.convert("RGB").save(out, optimize=True)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        root = Path(folder)
        world = open_source(str(make(root / "world")))
        overview_figure(world, statistics(world), out / "inspection-stats.png")
        write_map(world, root / "world.html", "sensor", None, 400, "world")
        shoot(root / "world.html", "", out / "inspection-map.png", (1440, 860))
        shoot(root / "world.html", "#view=north&color=year", out / "inspection-map-pole.png", (1440, 860))
        write_report(world, root / "report.html")
        shoot(root / "report.html", "", out / "inspection-report.png", (1100, 1480))
        simulate(root / "sim", scenes=8, size=768, looks=4.0, seed=3)
        config = BuildConfig(tile_size=128, val_share=0.2, cell_km=4.0, name="sim")
        build([str(root / "sim" / "scenes")], root / "sim-corpus", config, workers=0)
        near = open_source(str(root / "sim-corpus"))
        write_map(near, root / "near.html", "split", "polarisation = 'VV'", 400, "sim-corpus")
        shoot(root / "near.html", "#tile=9", out / "inspection-map-near.png", (1440, 860))
    for path in sorted(out.glob("inspection-*.png")):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
