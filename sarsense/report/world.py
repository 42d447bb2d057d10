"""Tiles on a map with coastline, for print: counted by cell, coloured by split."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from sarsense.errors import CorpusError
from sarsense.inspection.query import columns_of, select
from sarsense.inspection.source import Source
from sarsense.places import Place
from sarsense.report.overview import OTHER, PALETTE
from sarsense.report.page import coastline
from sarsense.report.picture import DPI, check_picture, save
from sarsense.report.regions import UNKNOWN

_COLOURS = {"train": PALETTE[0], "val": "#e0632b"}
_ACROSS = 190
"""cells along the map"""
_MARGIN = 0.12
_LEAST = 4.0
"""degrees that a map shows, at least: coastlines say little on a closer one"""


def world_figure(source: Source, out_png: Place) -> None:
    """Middles of tiles, one mark a cell, larger with the logarithm of the count. CorpusError where none has a place."""
    check_picture(out_png)
    known = columns_of(source)
    if not {"lon", "lat"} <= {*known}:
        raise CorpusError(f"{source.name}: nothing says where tiles lie: nothing to map")
    table = select(source, [name for name in ("lon", "lat", "split") if name in known])
    lon, lat = (table[name].to_numpy().astype(np.float64) for name in ("lon", "lat"))
    placed = np.isfinite(lon) & np.isfinite(lat)
    if not placed.any():
        raise CorpusError(f"{source.name}: no tile has a place: nothing to map")
    middle, wide, south, north = _frame(lon[placed], lat[placed])
    shrink = 1.0 if wide > 120 else max(math.cos(math.radians((south + north) / 2)), 0.1)
    high = north - south
    tall = min(max(10.6 * high / (wide * shrink), 3.6), 7.5)
    figure = Figure(figsize=(11.4, tall + 0.75), dpi=DPI, layout="constrained", facecolor="white")
    axes = figure.add_subplot(facecolor="#dce8f0")
    _land(axes, middle)
    x = middle + (lon[placed] - middle + 180.0) % 360.0 - 180.0
    splits = np.full(len(table), UNKNOWN, object)
    if "split" in known:
        splits = np.array(table["split"].fill_null(UNKNOWN).to_pylist(), object)
    _marks(axes, x, lat[placed], splits[placed], wide / _ACROSS)
    axes.set_xlim(middle - wide / 2, middle + wide / 2)
    axes.set_ylim(south, north)
    axes.set_aspect(1 / shrink)
    axes.grid(color="#7d96a8", alpha=0.3, lw=0.6)
    axes.xaxis.set_major_formatter(lambda value, _: _degrees((value + 180) % 360 - 180, "E", "W"))
    axes.yaxis.set_major_formatter(lambda value, _: _degrees(value, "N", "S"))
    axes.locator_params(nbins=8)
    axes.tick_params(labelsize=8, length=0)
    axes.spines[:].set_color("#b9c6cf")
    save(figure, out_png)


def _frame(lon: np.ndarray, lat: np.ndarray) -> tuple[float, float, float, float]:
    """Middle and width in longitude, south and north: all but the widest gap between tiles, with a margin."""
    degrees = np.unique(np.round(lon % 360.0, 2))
    gaps = np.diff(degrees, append=degrees[0] + 360.0)
    widest = int(np.argmax(gaps))
    wide = 360.0 - float(gaps[widest])
    middle = float(degrees[(widest + 1) % len(degrees)]) + wide / 2
    low, high = float(lat.min()), float(lat.max())
    if wide > 180.0:
        return 0.0, 360.0, -90.0 if low < -62 else -60.0, 90.0 if high > 84 else 84.0
    tall = max(high - low, _LEAST, 0.35 * wide * math.cos(math.radians((low + high) / 2)))
    wide = max(wide, _LEAST, 1.3 * tall / max(math.cos(math.radians((low + high) / 2)), 0.1))
    wide, tall = min(360.0, wide * (1 + 2 * _MARGIN)), tall * (1 + 2 * _MARGIN)
    south, north = max(-90.0, (low + high - tall) / 2), min(90.0, (low + high + tall) / 2)
    return (middle + 180.0) % 360.0 - 180.0, wide, south, north


def _land(axes: Any, middle: float) -> None:
    content = coastline()
    points, codes = [], []
    for ring in content["rings"]:
        outline = content["unit"] * np.cumsum(np.reshape(ring, (-1, 2)), axis=0)
        for shift in (-360.0, 0.0, 360.0):
            if abs(outline[:, 0].mean() + shift - middle) < 380.0:
                points.append(outline + np.array([shift, 0.0]))
                codes.append([Outline.MOVETO, *[Outline.LINETO] * (len(outline) - 2), Outline.CLOSEPOLY])
    path = Outline(np.concatenate(points), np.concatenate(codes))
    axes.add_patch(PathPatch(path, facecolor="#faf8f3", edgecolor="#8fa3b1", lw=0.5))


def _marks(axes: Any, x: np.ndarray, y: np.ndarray, splits: np.ndarray, cell: float) -> None:
    names = sorted(set(splits.tolist()), key=lambda name: (name == UNKNOWN, name))
    most, handles = 1, []
    found = []
    for name in names:
        inside = splits == name
        cells = np.stack([np.floor(x[inside] / cell), np.floor(y[inside] / cell)], axis=1)
        places, counts = np.unique(cells, axis=0, return_counts=True)
        found.append((name, places, counts))
        most = max(most, int(counts.max()))
    for name, places, counts in found:
        size = 9 + 40 * np.log1p(counts) / np.log1p(most)
        colour = _COLOURS.get(name, OTHER)
        where = (places + 0.5) * cell
        axes.scatter(where[:, 0], where[:, 1], s=size, color=colour, alpha=0.75, lw=0.4, edgecolor="white", zorder=3)
        label = f"{name}: {int(counts.sum()):,} tiles"
        handles.append(Line2D([], [], color=colour, marker="o", ls="", ms=6, label=label))
    legend = axes.legend(handles=handles, loc="lower left", fontsize=8, framealpha=0.92)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _degrees(value: float, positive: str, negative: str) -> str:
    return f"{abs(value):.4g}°{positive if value > 0 else negative if value < 0 else ''}"
