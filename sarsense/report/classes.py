"""What a tile is counted under: region, season, year and class of pixel spacing, from its row of tiles.parquet."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pyarrow as pa

from sarsense.report.regions import UNKNOWN, grid_zones, seasons

_SPACING_EDGES = (0.7, 1.7, 4.0, 7.0, 15.0, 35.0, 70.0)
"""metres: none near a spacing that products have, so that 10.002 m and 9.998 m are of one class"""
COLUMNS = (
    "scene",
    "split",
    "sensor",
    "mode",
    "polarisation",
    "datetime",
    "orbit_direction",
    "lon",
    "lat",
    "spacing_x_m",
    "spacing_y_m",
)


def with_classes(table: pa.Table) -> pa.Table:
    """Tiles (COLUMNS of tiles.parquet) with region, season, year and spacing class; null becomes unknown."""
    lat, lon = (table[name].to_numpy().astype(np.float64) for name in ("lat", "lon"))
    month, year = _months_and_years(table["datetime"])
    x, y = (table[name].to_numpy().astype(np.float64) for name in ("spacing_x_m", "spacing_y_m"))
    classes = {
        "region": pa.array(grid_zones(lon, lat)),
        "season": pa.array(seasons(month, lat)),
        "year": pa.array(year),
        "spacing": pa.array(_spacing_classes(np.sqrt(x * y))),
    }
    for name, values in classes.items():
        table = table.append_column(name, values)
    for name in ("sensor", "mode", "polarisation", "orbit_direction"):
        index = table.schema.get_field_index(name)
        table = table.set_column(index, name, table[name].fill_null(UNKNOWN))
    return table


def _months_and_years(dates: pa.ChunkedArray) -> tuple[np.ndarray, np.ndarray]:
    """Month (int (n,), 0 unknown) and year (str (n,)) of ISO 8601 texts. Half a million tiles have few dates."""
    encoded = dates.combine_chunks().dictionary_encode()
    texts = [text or "" for text in encoded.dictionary.to_pylist()]
    found = [re.match(r"(\d{4})-(0[1-9]|1[0-2])(?!\d)", text) for text in texts]
    month = np.array([int(match[2]) if match else 0 for match in found] + [0])
    year = np.array([match[1] if match else UNKNOWN for match in found] + [UNKNOWN])
    index = encoded.indices.fill_null(len(texts)).to_numpy()
    return month[index], year[index]


def _spacing_classes(spacing: np.ndarray) -> np.ndarray:
    """The class (str) of pixel spacings in metres, float64 (n,)."""
    names = np.array([*spacing_names(), UNKNOWN])
    known = np.isfinite(spacing)
    return names[np.where(known, np.searchsorted(_SPACING_EDGES, np.where(known, spacing, 0.0), "right"), -1)]


def spacing_names() -> list[str]:
    """The classes of pixel spacing, from fine to coarse."""
    between = [f"{lo:g} to {hi:g} m" for lo, hi in pairwise(_SPACING_EDGES)]
    return [f"under {_SPACING_EDGES[0]:g} m", *between, f"{_SPACING_EDGES[-1]:g} m and more"]
