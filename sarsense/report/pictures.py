"""The pictures of a corpus's README: a contact sheet, the ranges of its groups, and where on Earth its tiles lie.

Of a large corpus the sheet is chosen among one tile a scene, and the map counts tiles by cell rather than draw half a
million footprints.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from sarsense.corpus import Corpus
from sarsense.places import Place, readable
from sarsense.report.footprints import footprint_map
from sarsense.report.histograms import statistics_figure
from sarsense.report.picture import DPI, save
from sarsense.report.sheet import contact_sheet

FOLDER = "datasheet"
SHEET, RANGES, MAP = (f"{FOLDER}/{name}.png" for name in ("contact-sheet", "ranges", "footprints"))
LARGE = 20_000
"""tiles from which on the pictures are made of a part, or of counts"""
_SAMPLE = 1_000
_BATCH = 16_384
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
    contact_sheet(_Sample(corpus) if large else corpus, corpus.root / SHEET)
    statistics_figure(corpus, corpus.root / RANGES)
    if MAP in wanted:
        (_density_map if large else footprint_map)(corpus, corpus.root / MAP)
    return [corpus.root / name for name in wanted]


class _Sample(Corpus):
    """A corpus that shows up to `_SAMPLE` of its tiles: as many groups and scenes as there are, a tile of each."""

    def __init__(self, corpus: Corpus) -> None:
        super().__init__(corpus.root, corpus.manifest)
        labels = corpus.tiles(columns=["group", "scene"])
        pair = [labels[name].combine_chunks().dictionary_encode() for name in ("group", "scene")]
        number = pair[0].indices.to_numpy().astype(np.int64) * len(pair[1].dictionary) + pair[1].indices.to_numpy()
        # rows lie in a seeded order that mixes scenes: the first of each is as good as a drawn one
        first = np.sort(np.unique(number, return_index=True)[1])
        if len(first) > _SAMPLE:
            first = first[np.linspace(0, len(first) - 1, _SAMPLE).astype(np.int64)]
        self._table = _rows(corpus.root / "tiles.parquet", first)
        self.manifest = {**corpus.manifest, "version": f"{corpus.manifest['version']}, a tile a scene"}

    def tiles(self, split: str | None = None, columns: Any = None) -> pa.Table:
        table = self._table if columns is None else self._table.select([*dict.fromkeys([*columns, "split"])])
        return table if split is None else table.filter(pc.field("split") == split)


def _rows(path: Place, wanted: np.ndarray) -> pa.Table:
    """The rows of these ascending numbers, read batch by batch: all columns of all rows would be half a gigabyte."""
    found, start = [], 0
    with pq.ParquetFile(readable(path)) as file:
        for batch in file.iter_batches(_BATCH):
            inside = wanted[(wanted >= start) & (wanted < start + len(batch))] - start
            found.append(batch.take(pa.array(inside)))
            start += len(batch)
        return pa.Table.from_batches(found, file.schema_arrow)


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
