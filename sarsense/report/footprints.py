"""A map of the footprints of a corpus, by split."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import shapely
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sarsense.corpus import Corpus
from sarsense.errors import CorpusError
from sarsense.places import Place
from sarsense.report.picture import DPI, check_picture, save, words

_SPLIT_COLOURS = {"train": "#2b6ca3", "val": "#d1622b"}
_OTHER = "0.5"
"""of a split that a changed table says"""


def footprint_map(corpus: Corpus, out_png: Place) -> None:
    """Footprints by split on a graticule; a corpus of many far places also gets a panel for each cluster of them.

    The overview marks each cluster; up to six clusters, the largest first, are drawn true to shape beside it.
    Raises CorpusError where no tile is placed.
    """
    check_picture(out_png)
    table = corpus.tiles(columns=["footprint"])
    placed = [
        (w, s)
        for w, s in zip(table["footprint"].to_pylist(), table["split"].fill_null("unknown").to_pylist(), strict=True)
        if w
    ]
    if not placed:
        raise CorpusError(f"{corpus.root}: no tile has a footprint (a corpus of unplaced scenes): nothing to map")
    polygons = shapely.from_wkb([wkb for wkb, _ in placed], on_invalid="ignore")
    known = ~shapely.is_missing(polygons) & ~shapely.is_empty(polygons)
    polygons, splits = polygons[known], np.array([split for _, split in placed])[known]
    clusters = _clusters(polygons)
    shown = clusters[:6] if len(clusters) > 1 else []
    figure = Figure(figsize=(11, 6.2) if shown else (7.2, 6.6), dpi=DPI, layout="constrained")
    grid = figure.add_gridspec(1, 2, width_ratios=(1.15, 1)) if shown else figure.add_gridspec(1, 1)
    main = figure.add_subplot(grid[0])
    _draw_footprints(main, polygons, splits, _frame(shapely.total_bounds(polygons)))
    for number, members in enumerate(clusters if shown else [], 1):
        west, south, east, north = shapely.total_bounds(polygons[members])
        middle = (west + east) / 2, (south + north) / 2
        # a ring about each place, since a tile is hardly a pixel on a map of a continent
        main.plot(*middle, "o", ms=11, mfc="none", mec="0.45", mew=0.8)
        if number <= len(shown):
            above = {"xytext": (0, 8), "textcoords": "offset points", "ha": "center"}
            main.annotate(str(number), middle, size=9, weight="bold", **above)
    if shown:
        columns = 1 if len(shown) <= 3 else 2
        panels = grid[1].subgridspec(math.ceil(len(shown) / columns), columns)
        for number, members in enumerate(shown, 1):
            axes = figure.add_subplot(panels[divmod(number - 1, columns)])
            _draw_footprints(axes, polygons[members], splits[members], _frame(shapely.total_bounds(polygons[members])))
            axes.set_title(f"{number}: {len(members)} tiles", size=8, loc="left")
            axes.tick_params(labelsize=6)
    unplaced = len(table) - len(placed)
    count = ", ".join(f"{number} {split}" for split, number in sorted(Counter(splits.tolist()).items()))
    rest = f", {unplaced} without a place" if unplaced else ""
    more = f"; {len(shown)} of {len(clusters)} places enlarged" if len(clusters) > len(shown) > 0 else ""
    figure.suptitle(
        words(f"{corpus.name} {corpus.manifest['version']}: {count} tiles{rest}{more}", 160), size=10.5, weight="bold"
    )
    handles = [
        Line2D([], [], color=_SPLIT_COLOURS.get(s, _OTHER), lw=5, alpha=0.6, label=s)
        for s in sorted(set(splits.tolist()))
    ]
    main.legend(handles=handles, loc="best", fontsize=8, framealpha=0.9)
    save(figure, out_png)


def _clusters(polygons: np.ndarray) -> list[np.ndarray]:
    """Groups of footprints less than a quarter of a degree apart, the largest first; one group where all are near."""
    west, south, east, north = shapely.total_bounds(polygons)
    if max(east - west, north - south) < 1.5:
        return [np.arange(len(polygons))]
    merged = shapely.union_all(shapely.buffer(shapely.envelope(polygons), 0.125, quad_segs=2))
    parts = shapely.get_parts(merged)
    part, member = shapely.STRtree(shapely.centroid(polygons)).query(parts, predicate="intersects")
    groups = [member[part == number] for number in range(len(parts))]
    return sorted((group for group in groups if group.size), key=lambda group: (-len(group), group[0]))


def _frame(bounds: np.ndarray) -> tuple[float, float, float, float]:
    """West, south, east, north with a margin; a long strip becomes a map of at least 3 : 4 on the ground."""
    west, south, east, north = bounds
    x, y = (west + east) / 2, (south + north) / 2
    shrink = max(math.cos(math.radians(y)), 0.05)
    wide, high = (east - west) * shrink, north - south
    margin = max(0.08 * max(wide, high), 0.005)
    wide, high = max(wide, 0.75 * high) / 2 + margin, max(high, 0.75 * wide) / 2 + margin
    return x - wide / shrink, y - high, x + wide / shrink, y + high


def _draw_footprints(
    axes: Any, polygons: np.ndarray, splits: np.ndarray, frame: tuple[float, float, float, float]
) -> None:
    west, south, east, north = frame
    for split in sorted(set(splits.tolist())):
        colour = _SPLIT_COLOURS.get(split, _OTHER)
        rings = [shapely.get_coordinates(polygon) for polygon in polygons[splits == split]]
        axes.add_collection(PolyCollection(rings, facecolors=colour, edgecolors=colour, alpha=0.45, linewidths=0.6))
    axes.set_xlim(west, east)
    axes.set_ylim(south, north)
    # a degree of longitude is shorter than one of latitude: true to shape at the middle of the map
    axes.set_aspect(1 / max(math.cos(math.radians((south + north) / 2)), 0.05), adjustable="box")
    axes.grid(color="0.85", lw=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees(value, "E", "W"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "N", "S"))
    axes.locator_params(nbins=5)
    axes.tick_params(labelsize=8)


def _degrees(value: float, positive: str, negative: str) -> str:
    value = (value + 180) % 360 - 180 if positive == "E" else value
    return f"{abs(value):.6g}°{positive if value > 0 else negative if value < 0 else ''}"
