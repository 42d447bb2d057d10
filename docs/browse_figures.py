"""Screenshots of `sarsense shards browse` for docs/browse.md, of a corpus of simulated scenes, some of them spoilt.

    python -m docs.browse_figures [OUT]

Wants Chromium and playwright (extra dev). The corpus is made in a temporary folder.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL import Image

from pipelines.build import build
from sarsense.browse.server import BrowseServer
from sarsense.browse.session import browse
from sarsense.config import BuildConfig
from sarsense.simulate import simulate

OUT = Path(__file__).parent / "figures"
SIZE = {"width": 1440, "height": 900}


def spoil(scenes: Path) -> None:
    """Interference in one scene, and one of which half was never received."""
    first, second = sorted(scenes.glob("*.tif"))[1:3]
    with rasterio.open(first, "r+") as dataset:
        pixels = dataset.read()
        rows = np.arange(pixels.shape[1])
        pixels *= (10 ** (0.55 * (np.sin(rows / 2.3) > 0.6)))[None, :, None].astype(pixels.dtype)
        dataset.write(pixels)
    with rasterio.open(second, "r+") as dataset:
        pixels = dataset.read()
        pixels[:, 300:420, 180:] *= 0.02
        dataset.write(pixels)


def corpus(folder: Path) -> Path:
    simulate(folder / "sim", scenes=8, size=768, looks=4.0, seed=5)
    spoil(folder / "sim" / "scenes")
    config = BuildConfig(name="meadows", tile_size=192, content="both", val_share=0.2, cell_km=6.0, overlap=1.0)
    build([str(folder / "sim" / "scenes")], folder / "corpus", config, 0)
    return folder / "corpus"


def shots(server: BrowseServer, out: Path) -> None:
    from playwright.sync_api import sync_playwright

    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        raise SystemExit("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for scheme in ("dark", "light"):
            page = browser.new_page(viewport=SIZE, color_scheme=scheme)
            page.goto(server.url)
            settle(page)
            if scheme == "dark":
                look(page, out)
            else:
                page.screenshot(path=out / "browse-light.png")
            page.close()
        browser.close()


def look(page: Any, out: Path) -> None:
    """What a person does who looks for bad scenes: most structure first, one tile a scene; open, flag, compare."""
    page.select_option("#sort", "-std_db")
    settle(page)
    page.screenshot(path=out / "browse-grid.png")
    page.click("#grid .tile >> nth=0")
    settle(page)
    page.click(".chips button:has-text('seam')")
    page.click("#flag-tile")
    page.wait_for_selector(".is-flagged")
    box = page.locator("#detail canvas").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.45)
    page.screenshot(path=out / "browse-tile.png")
    page.keyboard.press("ArrowRight")
    settle(page)
    page.keyboard.press("3")
    settle(page)
    page.locator(".facts-side").evaluate("node => node.scrollTo(0, 500)")
    box = page.locator("#detail canvas >> nth=0").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.3)
    page.screenshot(path=out / "browse-compare.png")
    page.keyboard.press("Escape")
    page.fill("#where", "polarisation = 'VV' and mean_db > -14 and")
    page.keyboard.press("Enter")
    page.wait_for_selector("#error:not(.hidden)")
    page.screenshot(path=out / "browse-error.png")


def settle(page: Any) -> None:
    page.wait_for_selector("#grid .tile")
    page.wait_for_load_state("networkidle")
    page.wait_for_timeout(400)


def main(out: Path = OUT) -> None:
    with tempfile.TemporaryDirectory() as folder:
        made = corpus(Path(folder))
        with browse(str(made), "127.0.0.1", 0, Path(folder) / "flags.csv") as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                shots(server, out)
            finally:
                server.shutdown()
                thread.join()
    for path in sorted(out.glob("browse-*.png")):
        with Image.open(path) as shot:  # a third of the bytes, and nothing that an eye misses
            shot.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)
        print(path)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
