"""The pictures of a corpus's README: a contact sheet, the ranges of its groups, and where on Earth its tiles lie.

Of a large corpus the map counts tiles by cell rather than draw half a million footprints.
"""

from __future__ import annotations

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sarsense.corpus import Corpus
from sarsense.inspection.show import show
from sarsense.inspection.source import Source
from sarsense.places import Place
from sarsense.report.footprints import footprint_map
from sarsense.report.histograms import statistics_figure
from sarsense.report.picture import DPI, save

FOLDER = "datasheet"
SHEET, RANGES, MAP = (f"{FOLDER}/{name}.png" for name in ("contact-sheet", "ranges", "footprints"))
LARGE = 20_000
"""tiles from which on the map is one of counts"""
_CELLS = 180
"""cells of the map along the wider side"""


def pictures_of(corpus: Corpus) -> dict[str, str]:
    """Path, relative to the corpus, and caption of each picture that `draw_pictures` makes."""
    lon = corpus.tiles(columns=["lon"])["lon"]
    pictures = {
        SHEET: "Tiles spread over groups and scenes; black is code 1, white the highest code, blue no data.",
        RANGES: "The despeckled dB of the ground of each group, and the range that became the codes.",
    }
    if lon.null_count < len(lon):
        counted = "Tiles by cell of the map." if len(lon) > LARGE else "Footprints by split."
        missing = f" {lon.null_count:,} tiles have no place." if lon.null_count else ""
        pictures[MAP] = counted + missing
    return pictures


def draw_pictures(corpus: Corpus) -> list[Place]:
    """Draw the pictures into the corpus's folder; the paths written."""
    wanted = pictures_of(corpus)
    large = len(corpus.tiles(columns=["split"])) > LARGE
    show(Source(corpus.name, corpus), corpus.root / SHEET)
    statistics_figure(corpus, corpus.root / RANGES)
    if MAP in wanted:
        (_density_map if large else footprint_map)(corpus, corpus.root / MAP)
    return [corpus.root / name for name in wanted]


def _density_map(corpus: Corpus, out_png: Place) -> None:
    """Tiles by cell, on a graticule, true to shape at the middle of the map."""
    table = corpus.tiles(columns=["lon", "lat"])
    lon, lat = (table[name].to_numpy().astype(np.float64) for name in ("lon", "lat"))
    known = np.isfinite(lon) & np.isfinite(lat)
    lon, lat = lon[known], lat[known]
    west, east, south, north = lon.min(), lon.max(), lat.min(), lat.max()
    side = max(east - west, north - south, 0.01) / _CELLS
    xs, ys = (np.arange(low, high + 2 * side, side) for low, high in ((west, east), (south, north)))
    counts = np.histogram2d(lat, lon, bins=(ys, xs))[0]
    figure = Figure(figsize=(11, 6.2), dpi=DPI, layout="constrained")
    axes = figure.add_subplot()
    mesh = axes.pcolormesh(xs, ys, np.ma.masked_equal(counts, 0), norm=LogNorm(1, max(counts.max(), 2)), cmap="viridis")
    figure.colorbar(mesh, ax=axes, label=f"tiles in a cell of {side:.2g}°", shrink=0.8)
    axes.set_aspect(1 / max(np.cos(np.radians((south + north) / 2)), 0.05))
    axes.grid(color="0.85", lw=0.6)
    axes.set_axisbelow(True)
    axes.set_xlabel("longitude, degrees east", size=8)
    axes.set_ylabel("latitude, degrees north", size=8)
    axes.tick_params(labelsize=8)
    figure.suptitle(f"{corpus.name} {corpus.manifest['version']}: {len(lon):,} tiles", size=10.5, weight="bold")
    save(figure, out_png)
